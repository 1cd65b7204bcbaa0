"""Orbax retries its requests to a bucket for as long as it is told."""

import sys
import time

import orbax.checkpoint as ocp
import pytest

from data_pipelines import retries
from musicssl import host
from musicssl.runtime import buckets
from musicssl.runtime.checkpoint import Checkpoints
from musicssl.runtime.workdir import claim, steps_on_disk
from tests.support.bucket import ROOT, Bucket, Fault
from tests.support.saved_states import config, made_state


@pytest.fixture(autouse=True)
def as_before():
    yield
    buckets.limit_retries(300.0)


@pytest.mark.parametrize(("seconds", "count"), [(0.1, 1), (0.25, 1), (1.0, 3), (300.0, 12)])
def test_pauses_add_up_to_the_time(seconds, count):
    told = buckets.retries(seconds)
    pauses = [min(0.25 * 2**i, 60.0) for i in range(told["max_retries"])]
    assert told["max_retries"] == count and sum(pauses) >= seconds > sum(pauses[:-1])


def test_orbax_takes_what_it_is_told_and_keeps_the_rest():
    for seconds in (1.0, 2.0):  # the last one counts
        buckets.limit_retries(seconds)
    module = sys.modules[ocp.type_handlers.get_ts_context.__module__]
    context = module.get_ts_context(use_ocdbt=True)
    assert context["gcs_request_retries"].to_json()["max_retries"] == 4
    assert context["cache_pool#ocdbt"].to_json() == {"total_bytes_limit": 100_000_000}


@pytest.mark.parametrize("request_of", ["(POST|PUT) .*name=.*/state/.+", "GET .*/state/.+"])
def test_a_save_ends_when_the_time_is_over(request_of, bucket: Bucket, monkeypatch):
    monkeypatch.setattr(retries, "PATIENCE", 0.5)
    workdir = host.path(f"{ROOT}/late-{'GET' in request_of}")  # which tells Orbax of the patience
    claim(workdir, config())
    checkpoints = Checkpoints(workdir, config())
    checkpoints.save(2, made_state(2), force=True)
    checkpoints.confirm()
    began = time.monotonic()
    with bucket.suffering(Fault("503", request_of)), pytest.raises(OSError, match="503") as caught:
        checkpoints.save(4, made_state(4), force=True)
        checkpoints.confirm()
    assert time.monotonic() - began < 20  # tensorstore's own pauses are 15 minutes
    assert caught.value.errno == 5 and "check the bucket" in str(caught.value)
    assert steps_on_disk(workdir) == [2]
