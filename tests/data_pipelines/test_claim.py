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


def test_file_systems_without_locks(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with claim.claim(tmp_path / "claim"):
        pass
    assert list(Path(tmp_path).iterdir()) == []
