"""The loopback bucket itself, by the libraries that are to take it for Google's."""

import time

import pytest
import tensorflow as tf
import tensorstore as ts

from tests.support.bucket import ROOT, Bucket, Fault

pytestmark = pytest.mark.usefixtures("bucket")


def write(path: str, content: bytes) -> None:
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content)


def read(path: str) -> bytes:
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


def test_tensorflow_and_tensorstore_see_the_same_objects(bucket: Bucket):
    content = bytes(range(256)) * 5000
    write(f"{ROOT}/seen/a", content)
    write(f"{ROOT}/seen/deep er/ü", b"")
    store = ts.KvStore.open(f"{ROOT}/seen/").result()
    assert store.read("a").result().value == content
    assert store.read("a", byte_range=slice(1000, 1010)).result().value == content[1000:1010]
    assert sorted(store.list().result()) == [b"a", "deep er/ü".encode()]
    assert store.read("b").result().state == "missing"
    store.write("b", b"new").result()
    assert read(f"{ROOT}/seen/b") == b"new"
    assert sorted(tf.io.gfile.listdir(f"{ROOT}/seen")) == ["a", "b", "deep er/"]
    tf.io.gfile.rename(f"{ROOT}/seen", f"{ROOT}/moved")
    assert set(bucket.files("moved/")) == {"moved/a", "moved/b", "moved/deep er/ü"}
    tf.io.gfile.rmtree(f"{ROOT}/moved")
    assert not bucket.files("moved/") and not bucket.files("seen/")


def test_only_one_of_two_writers_creates_an_object():
    store = ts.KvStore.open(f"{ROOT}/once/").result()
    absent = store.read("claim").result().stamp
    first = store.write("claim", b"1", if_equal=absent.generation).result()
    second = store.write("claim", b"2", if_equal=absent.generation).result()
    assert first.generation and not second.generation
    assert store.read("claim").result().value == b"1"


def test_faults_come_when_they_are_due_and_clients_try_again(bucket: Bucket):
    content = b"x" * 300_000
    write(f"{ROOT}/faulty/a", content)
    soon = {"gcs_request_retries": {"initial_delay": "10ms"}}
    store = ts.KvStore.open(f"{ROOT}/faulty/", context=ts.Context(soon)).result()
    with bucket.suffering(Fault("reset", "GET .*faulty/a", skip=1, times=1)):
        assert [read(f"{ROOT}/faulty/a"), read(f"{ROOT}/faulty/a")] == [content] * 2
        assert bucket.counts["faults_reset"] == 1
    for kind in ("503", "reset", "cut"):
        with bucket.suffering(Fault(kind, "GET .*faulty/a", times=1)):
            assert store.read("a").result().value == content
            assert bucket.counts[f"faults_{kind}"] == 1


def test_latency_and_counts(bucket: Bucket):
    bucket.put("counted/a", b"x" * 1000)
    store = ts.KvStore.open(f"{ROOT}/counted/").result()
    with bucket.suffering(latency=0.1):
        begin = time.monotonic()
        parts = [store.read("a", byte_range=slice(i, i + 10)) for i in range(8)]
        assert all(part.result().value == b"x" * 10 for part in parts)
        assert 0.1 < time.monotonic() - begin < 0.7  # at once, not one after another
        assert bucket.counts["reads"] == 8 and bucket.counts["bytes_read"] == 80
