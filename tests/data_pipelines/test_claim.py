"""Claims: one owner, who is named; those of processes that are gone are free."""

import errno
import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from data_pipelines import claim


def test_second_owner_is_told_of_the_first(tmp_path):
    path = tmp_path / "claim"
    with claim.claim(path):
        with pytest.raises(claim.Claimed, match=f"^process {os.getpid()} on .+ since 20"):
            claim.claim(path).__enter__()
        assert path.exists()
    assert not path.exists()
    with claim.claim(path):
        pass


@pytest.mark.parametrize("left", ["", "{", '{"process": 1, "host": "x", "since": "2020"}'])
def test_claim_of_a_dead_process_is_free(tmp_path, left):
    path = tmp_path / "claim"
    path.write_text(left)
    with claim.claim(path), pytest.raises(claim.Claimed, match=f"process {os.getpid()} on"):
        claim.claim(path).__enter__()


def test_only_one_of_many_has_it(tmp_path):
    path, inside, most, held = tmp_path / "claim", [], [], []

    def work() -> None:
        for _ in range(200):
            try:
                with claim.claim(path):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(1e-4)
                    inside.pop()
                held.append(1)
            except claim.Claimed:
                pass

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1} and held


def test_the_next_waits_for_the_owner_and_is_told_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "_LOOK_EVERY", 0.01)
    path, told = tmp_path / "claim", []
    first = claim.claim(path)
    first.__enter__()

    def waiting(other: claim.Claimed, seconds: float) -> None:
        told.append((str(other), round(seconds)))
        threading.Timer(0.1, first.__exit__, (None, None, None)).start()

    with claim.claim(path, patience=30, waiting=waiting):
        assert path.exists()
    ((owner, seconds),) = told
    assert owner.startswith(f"process {os.getpid()} on ") and seconds == 0
    with claim.claim(path), pytest.raises(claim.Claimed):
        claim.claim(path, patience=0.02).__enter__()


@pytest.mark.parametrize("where", ["disk", "NFS"])
def test_the_file_of_another_user(where, tmp_path, monkeypatch):
    """It can be read alone; a dead process's is replaced, a living one's left."""
    path, opened, flock = tmp_path / "claim", os.open, fcntl.flock

    def read_only(name: os.PathLike, flags: int, *mode: int) -> int:
        if flags == os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(name, flags, *mode)

    def as_nfs_does(descriptor: int, operation: int) -> None:  # flock(2), NFS details
        can_write = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if operation & fcntl.LOCK_EX and not can_write:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    path.write_text("left")
    monkeypatch.setattr(os, "open", read_only)
    if where == "NFS":
        monkeypatch.setattr(fcntl, "flock", as_nfs_does)
    with claim.claim(path), pytest.raises(claim.Claimed, match=f"process {os.getpid()} on"):
        claim.claim(path).__enter__()
    assert not path.exists()


def silent(path: Path, seconds: float) -> None:
    """Make a claim one that was last renewed so many seconds ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_lock_that_a_machine_left_behind_on_a_file_server(tmp_path, monkeypatch):
    """The owner's machine is another one, as in a claim of a pod that was deleted."""
    path = tmp_path / "claim"
    with claim.claim(path):
        silent(path, 1000)
        with pytest.raises(claim.Claimed):  # here the lock tells, however slow its owner is
            claim.claim(path).__enter__()
        monkeypatch.setattr(claim, "machine", lambda: "another")
        silent(path, 20)
        with pytest.raises(claim.Claimed, match=f"process {os.getpid()}"):
            claim.claim(path).__enter__()
        silent(path, 60)
        with claim.claim(path):
            own = path.stat().st_ino
            monkeypatch.undo()
            with pytest.raises(claim.Claimed):
                claim.claim(path).__enter__()
            assert path.stat().st_ino == own


def test_a_machine_that_was_taken_for_dead_leaves_the_next_ones_claim(tmp_path, monkeypatch):
    path = tmp_path / "claim"
    first, second = claim.claim(path), claim.claim(path)
    first.__enter__()
    silent(path, 60)
    monkeypatch.setattr(claim, "machine", lambda: "another")
    second.__enter__()
    first.__exit__(None, None, None)
    assert path.exists()
    second.__exit__(None, None, None)
    assert not path.exists()


def test_a_claim_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "RENEWED_EVERY", 0.01)
    path = tmp_path / "claim"
    with claim.claim(path):
        silent(path, 1000)
        before = path.stat().st_mtime
        while path.stat().st_mtime == before:
            time.sleep(0.01)


def test_file_systems_without_locks(tmp_path, monkeypatch):
    """There who made the file has the claim, until it is silent."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    path = tmp_path / "claim"
    with claim.claim(path), pytest.raises(claim.Claimed, match=f"process {os.getpid()}"):
        claim.claim(path).__enter__()
    assert list(tmp_path.iterdir()) == []
    path.write_text('{"process": 1, "host": "x", "since": "2020"}')  # as a killed one leaves it
    with pytest.raises(claim.Claimed, match="process 1 on x since 2020"):
        claim.claim(path).__enter__()
    silent(path, 60)
    with claim.claim(path):
        pass
    assert list(tmp_path.iterdir()) == []
