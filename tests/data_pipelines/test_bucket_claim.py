"""Claims on gs://: one owner, who is named; that of a process that was killed becomes free."""

import os
import threading

import pytest

from data_pipelines import bucket_claim
from data_pipelines.claim import Claimed
from tests.support.bucket import ROOT


@pytest.fixture(autouse=True)
def quick(bucket, monkeypatch):
    monkeypatch.setattr(bucket_claim, "RENEWED_EVERY", 0.05)
    monkeypatch.setattr(bucket_claim, "SILENT_AFTER", 0.5)


def test_second_owner_is_told_of_the_first(bucket):
    with bucket_claim.claim(f"{ROOT}/claims/one"):
        with pytest.raises(Claimed, match=f"^process {os.getpid()} on .+ since 20"):
            bucket_claim.claim(f"{ROOT}/claims/one").__enter__()
        assert bucket.files("claims/")
    assert not bucket.files("claims/")
    with bucket_claim.claim(f"{ROOT}/claims/one"):
        pass


def test_claim_that_nobody_renews_becomes_free(bucket):
    bucket.put("claims/left", b'{"process": 1, "host": "x", "since": "2020"}')
    with bucket_claim.claim(f"{ROOT}/claims/left"):
        assert b'"since": "2020"' not in bucket.files("claims/left")["claims/left"]


def test_only_one_of_many_has_it(bucket):
    held, together = [], threading.Barrier(4)

    def work() -> None:
        together.wait()
        try:
            with bucket_claim.claim(f"{ROOT}/claims/many"):
                held.append(threading.current_thread())
                together.wait()
        except Claimed:
            together.wait()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1


def test_owner_whose_claim_was_taken_learns_of_it(bucket):
    with pytest.raises(Claimed, match="process 1 on x"):  # noqa: SIM117
        with bucket_claim.claim(f"{ROOT}/claims/lost"):
            bucket.put("claims/lost", b'{"process": 1, "host": "x", "since": "2020"}')
            threading.Event().wait(0.3)
    assert bucket.files("claims/lost")  # which is not this process's to delete
