"""Errors of storage: those that pass are waited for, the others are raised at once."""

import errno
import threading
import time

import pytest
import tensorflow as tf

from data_pipelines import retries
from data_pipelines.record_index import Damaged

PASSING = [
    OSError(errno.EIO, "away"),
    OSError(errno.ESTALE, "stale"),
    OSError(errno.ENOTCONN, "the mount is gone"),
    ConnectionResetError(),
    TimeoutError("late"),
    tf.errors.UnavailableError(None, None, "503"),
    tf.errors.DeadlineExceededError(None, None, "late"),
]
LASTING = [
    PermissionError(errno.EACCES, "not yours"),
    FileNotFoundError(errno.ENOENT, "none"),
    Damaged("a record"),
    ValueError("a bug"),
]


class Failing:
    """Raises the errors, one a call, and then returns 7."""

    def __init__(self, *errors: Exception):
        self.errors = list(errors)

    def __call__(self) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return 7


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(retries, "_FIRST_PAUSE", 1e-3)
    monkeypatch.setattr(retries, "_told_at", float("-inf"))


def test_errors_that_pass_are_tried_again_and_told_once(caplog):
    assert retries.patiently(Failing(*PASSING), lambda: "a shard") == 7
    assert [x.message for x in caplog.records] == ["a shard: away; retrying for up to 300 s"]


@pytest.mark.parametrize("error", LASTING, ids=lambda error: type(error).__name__)
def test_errors_that_last_are_raised_as_they_are(error):
    with pytest.raises(type(error)) as caught:
        retries.patiently(Failing(error), lambda: "a shard")
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (tf.errors.PermissionDeniedError(None, None, "403"), PermissionError),
        (tf.errors.NotFoundError(None, None, "404"), FileNotFoundError),
        (tf.errors.DataLossError(None, None, "a checksum"), OSError),
    ],
)
def test_tensorflows_lasting_errors_become_those_that_commands_tell(error, kind):
    with pytest.raises(kind, match=error.message) as caught:
        retries.patiently(Failing(error), lambda: "a shard")
    assert type(caught.value) is kind and not retries.passes(caught.value)


def test_patience_ends(monkeypatch):
    monkeypatch.setattr(retries, "PATIENCE", 0.2)
    begin = time.monotonic()
    with pytest.raises(retries.Unreachable) as caught:
        retries.patiently(Failing(*PASSING * 1000), lambda: "a shard")
    assert 0.2 <= time.monotonic() - begin < 1
    message = str(caught.value)
    assert message.startswith("a shard: ") and "run the same command again" in message
    assert caught.value.errno == errno.EIO


def test_who_wants_it_no_more_does_not_wait(monkeypatch):
    monkeypatch.setattr(retries, "_FIRST_PAUSE", 60.0)
    closed = threading.Event()
    threading.Timer(0.05, closed.set).start()
    with pytest.raises(retries.Closed):
        retries.patiently(Failing(*PASSING), lambda: "a shard", closed)
