"""Claims on gs://: one owner, who is named; that of a process that was killed becomes free."""

import json
import os
import subprocess
import threading

import pytest

from data_pipelines import bucket_claim
from data_pipelines.claim import Claimed
from tests.support.bucket import ROOT, Fault


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


def test_claim_of_a_process_of_this_machine_that_is_gone_is_free_at_once(bucket, monkeypatch):
    monkeypatch.setattr(bucket_claim, "SILENT_AFTER", 1e6)
    with bucket_claim.claim(f"{ROOT}/claims/gone"):
        (mine,) = bucket.files("claims/gone").values()
    ended = subprocess.Popen(["true"])
    ended.wait()
    bucket.put("claims/gone", json.dumps(json.loads(mine) | {"process": ended.pid}).encode())
    with bucket_claim.claim(f"{ROOT}/claims/gone"):
        assert f'"process": {os.getpid()}' in bucket.files("claims/gone")["claims/gone"].decode()


def test_the_next_one_waits_for_the_owner_s_end_and_is_told_of_it(bucket):
    first, told = bucket_claim.claim(f"{ROOT}/claims/next"), []
    first.__enter__()

    def waiting(owner: Claimed, seconds: float) -> None:
        told.append(str(owner))
        threading.Timer(0.3, first.__exit__, (None, None, None)).start()

    with bucket_claim.claim(f"{ROOT}/claims/next", 60.0, waiting):
        assert told[0].startswith(f"process {os.getpid()} on ") and len(told) == 1


def test_a_claim_survives_answers_that_are_lost(bucket):
    lost = Fault("lost", "POST .*upload", every=3)
    with bucket.suffering(lost), bucket_claim.claim(f"{ROOT}/claims/unsure"):
        threading.Event().wait(0.5)
        assert bucket.counts["faults_lost"] > 1
    assert not bucket.files("claims/unsure")


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
    told = []
    with pytest.raises(Claimed, match="process 1 on x"):  # noqa: SIM117
        with bucket_claim.claim(f"{ROOT}/claims/lost", lost=told.append):
            bucket.put("claims/lost", b'{"process": 1, "host": "x", "since": "2020"}')
            threading.Event().wait(0.3)
    assert [str(other) for other in told] == ["process 1 on x since 2020"]
    assert bucket.files("claims/lost")  # which is not this process's to delete
