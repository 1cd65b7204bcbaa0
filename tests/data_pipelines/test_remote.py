"""Paths on gs://: what they hold, and that errors that pass do not reach who works with them."""

import errno
import hashlib
import random

import pytest
from etils import epath

from data_pipelines import bucket_claim, remote, retries
from data_pipelines.remote import Remote
from tests.support.bucket import ROOT, Bucket, Fault

FAULTS = (  # as often as the libraries' own repetitions let some of them through
    *(Fault("503", "", every=9), Fault("reset", "", skip=1, every=13)),
    Fault("lost", "(POST|PUT) .*upload", every=3),
)


@pytest.fixture(autouse=True)
def soon(bucket, monkeypatch):
    monkeypatch.setattr(retries, "_FIRST_PAUSE", 1e-3)


def test_files_are_those_of_a_disk(bucket: Bucket):
    root = Remote(f"{ROOT}/remote")
    with bucket.suffering(*FAULTS):
        root.mkdir(parents=True, exist_ok=True)
        (root / "a" / "b.txt").write_text("ä\n")
        (root / "c").write_bytes(b"1")
        with (root / "c").open("ab") as file:
            file.write(b"2")
        with (root / "d").open("w") as file:
            file.write("text")
        assert (root / "c").read_bytes() == b"12" and (root / "d").read_text() == "text"
        assert (root / "a" / "b.txt").read_text() == "ä\n"
        assert sorted(path.name for path in root.iterdir()) == ["a", "c", "d"]
        assert (root / "a").is_dir() and (root / "c").is_file() and not (root / "x").exists()
        found = {str(top / name) for top, _, names in root.walk() for name in names}
        assert found == {f"{ROOT}/remote/{name}" for name in ("a/b.txt", "c", "d")}
        (root / "c").rename(root / "e")
        (root / "d").unlink()
        assert set(bucket.files("remote/")) >= {"remote/a/b.txt", "remote/e"}
        root.rmtree()
        assert bucket.counts["faults_503"] > 1 and bucket.counts["faults_lost"] > 1
    assert not bucket.files("remote/")


def test_a_path_keeps_its_kind_wherever_it_is_handed_to():
    path = epath.Path(Remote(f"{ROOT}/kind")) / "a"
    assert type(path) is type(path.parent) is type(path.with_suffix(".b")) is Remote
    assert f"{path}-b" == f"{ROOT}/kind/a-b" and path.name == "a"


def test_a_large_file_is_read_in_parts(bucket: Bucket, monkeypatch):
    monkeypatch.setattr(remote, "_PART", 300_000)
    content = random.Random(0).randbytes(1_000_000)
    path = Remote(f"{ROOT}/parts/large")
    path.write_bytes(content)
    with bucket.suffering(Fault("503", "GET .*large", every=2)), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        assert 4 <= bucket.counts["reads"] <= 6
    assert digest == hashlib.sha256(content).digest()
    with path.open("rb") as file:
        assert file.read(7) + file.read() == content


def test_what_is_not_written_to_its_end_is_not_there(bucket: Bucket):
    def write() -> None:
        with Remote(f"{ROOT}/half/file").open("wb") as file:
            file.write(b"1")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write()
    assert not bucket.files("half/")


@pytest.mark.parametrize("mode", ["r", "rb"])
def test_a_file_that_is_missing(mode):
    with pytest.raises(FileNotFoundError):  # noqa: SIM117
        with Remote(f"{ROOT}/none").open(mode) as file:
            file.read()


AWAY = {
    "read_bytes": Remote.read_bytes,
    "rmtree": Remote.rmtree,
    "exists": Remote.exists,
    "is_dir": Remote.is_dir,
    "iterdir": lambda path: list(path.iterdir()),
    "mkdir": lambda path: path.mkdir(),
    "rename": lambda path: path.rename(path.parent / "other"),
}


@pytest.mark.parametrize("work", AWAY)
def test_a_bucket_that_is_away_is_told_with_the_code_of_storage(bucket, monkeypatch, work):
    monkeypatch.setattr(retries, "PATIENCE", 0.2)
    path = Remote(f"{ROOT}/away-{work}")
    bucket.put(f"away-{work}/file", b"")
    with bucket.suffering(Fault("503", "")), pytest.raises(OSError, match="away") as caught:
        AWAY[work](path)
    assert caught.value.errno == errno.EIO
    assert bucket.files(f"away-{work}/file")


MAKES = {
    "mkdir": lambda path: path.mkdir(parents=True, exist_ok=True),
    "write_bytes": lambda path: path.write_bytes(b""),
    "claim": lambda path: bucket_claim.claim(str(path)).__enter__(),
}


@pytest.mark.parametrize("work", MAKES)
def test_a_bucket_that_does_not_exist_is_told_at_once(bucket, work):
    """TensorFlow would try for hours to make a folder there."""
    with pytest.raises(FileNotFoundError, match="there is no bucket nowhere: create it first"):
        MAKES[work](Remote("gs://nowhere/a/b"))


@pytest.mark.parametrize("work", {**AWAY, **MAKES})
def test_a_bucket_that_refuses_is_told_at_once_with_the_remedy(bucket, work):
    bucket.put("closed/file", b"")
    with bucket.suffering(Fault("403", "")), pytest.raises(PermissionError) as caught:
        {**AWAY, **MAKES}[work](Remote(f"{ROOT}/closed"))
    assert caught.value.errno == errno.EACCES
    assert caught.value.strerror.startswith("the bucket refuses (")
    assert "gcloud auth application-default login" in caught.value.strerror
    assert bucket.files("closed/") == {"closed/file": b""}


def test_a_refusal_is_told_in_the_bucket_s_own_words():
    body = '{"error": {"code": 403,\n "message": "a@b lacks storage.objects.get.",\n "errors": []}}'
    answers = (
        f"Error executing an HTTP request: HTTP response code 403 with body '{body}'",
        "Forbidden [http_response_body='" + body.replace('"', '\\"').replace("\n", "\\n") + "']",
    )
    for answer in answers:
        error = retries.forbidden(answer, "gs://abc/x")
        assert error.strerror.startswith("the bucket refuses (a@b lacks storage.objects.get.): ")
    error = retries.forbidden("Forbidden [http_response_code='403']", "gs://abc/x")
    assert error.strerror.startswith("the bucket refuses (Forbidden): ")


def test_a_folder_takes_no_file_s_place(bucket):
    bucket.put("taken/file", b"1")
    with pytest.raises(FileExistsError, match="is a file"):
        Remote(f"{ROOT}/taken/file").mkdir(exist_ok=True)
    folder = Remote(f"{ROOT}/taken/new/folder")
    folder.mkdir()
    assert folder.is_dir() and not list(folder.iterdir())
    assert bucket.files("taken/") == {"taken/file": b"1", "taken/new/folder/": b""}


@pytest.mark.parametrize("name", ["rmtree", "rename"])
def test_what_tensorflow_leaves_half_done_is_done(bucket: Bucket, name):
    """It says that there is no such folder, or that it may not, where it got no answer."""
    for number in range(3):
        bucket.put(f"half-{name}/{number}", b"")
    path = Remote(f"{ROOT}/half-{name}")
    faults = [Fault("503", "DELETE", skip=1, times=2), Fault("503", "/o$", skip=1, times=3)]
    with bucket.suffering(*faults):
        path.rmtree() if name == "rmtree" else path.rename(Remote(f"{ROOT}/other-{name}"))
    assert not bucket.files(f"half-{name}/")
    assert len(bucket.files(f"other-{name}/")) == (0 if name == "rmtree" else 3)


def test_a_bucket_that_refuses_is_asked_once(bucket: Bucket):
    with bucket.suffering(Fault("403", "")):
        with pytest.raises(OSError) as caught:
            Remote(f"{ROOT}/not-mine").write_bytes(b"")
        assert caught.value.errno == errno.EACCES and bucket.counts["requests"] == 1
