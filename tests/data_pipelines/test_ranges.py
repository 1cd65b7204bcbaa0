"""Parts of files, on a disk and in a bucket."""

import errno
import os

import pytest

from data_pipelines import ranges
from tests.support.bucket import ROOT, Fault

CONTENT = bytes(range(256)) * 100


@pytest.fixture(params=["disk", "bucket"])
def path(request, tmp_path, bucket) -> str:
    """A file of CONTENT, whose name looks like a pattern and an escape."""
    name = f"a[1] %41{tmp_path.name}?#.bin"
    if request.param == "bucket":
        bucket.put(f"ranges/{name}", CONTENT)
        return f"{ROOT}/ranges/{name}"
    (tmp_path / name).write_bytes(CONTENT)
    return str(tmp_path / name)


def test_parts_and_what_lies_beyond_the_end(path):
    files = ranges.Ranges()
    waiting = [files.begin(path, 10 * i, 20) for i in range(50)]
    assert [wait() for wait in waiting] == [CONTENT[10 * i : 10 * i + 20] for i in range(50)]
    assert files.read(path, 0, len(CONTENT)) == CONTENT
    assert len(files.read(path, len(CONTENT) - 5, 10)) < 10
    assert files.read(path, len(CONTENT) + 5, 10) == b""


def test_a_file_that_is_not_there_may_come_back(path):
    missing = path + ".missing"
    for read in (lambda: ranges.Ranges().read(missing, 0, 1), ranges.Ranges().begin(missing, 0, 1)):
        with pytest.raises(OSError) as caught:
            read()
        assert caught.value.errno == errno.ESTALE


def test_a_stale_descriptor_is_not_kept(tmp_path, monkeypatch):
    files, path = ranges.Ranges(), tmp_path / "a"
    path.write_bytes(b"old")
    assert files.read(str(path), 0, 3) == b"old"

    def stale(*_: object) -> bytes:
        raise OSError(errno.ESTALE, "stale")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "pread", stale)
        files.read(str(path), 0, 3)
    path.unlink()
    path.write_bytes(b"new")
    assert files.read(str(path), 0, 3) == b"new"


@pytest.mark.parametrize(("status", "number"), [("503", errno.EIO), ("403", errno.EACCES)])
def test_errors_of_a_bucket_tell_whether_they_may_pass(bucket, status, number):
    bucket.put("ranges/b", CONTENT)
    with bucket.suffering(Fault(status, "ranges/b")), pytest.raises(OSError) as caught:
        ranges.Ranges().read(f"{ROOT}/ranges/b", 0, 3)
    assert caught.value.errno == number
    assert ranges.Ranges().read(f"{ROOT}/ranges/b", 0, 3) == CONTENT[:3]
