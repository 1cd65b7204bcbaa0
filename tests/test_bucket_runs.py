"""Runs on a machine that has nothing but a bucket: trained, killed, probed, exported and read."""

import functools
from pathlib import Path

import pytest

from musicssl import host
from musicssl.runtime.workdir import steps_on_disk
from tests.faults import kill
from tests.support import commands, runs
from tests.support.bucket import ROOT, Bucket, Fault

OFTEN = {"steps": 16, "checkpoint.every": 4, "log_every": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory, bucket: Bucket) -> Path:
    root = tmp_path_factory.mktemp("bucket")
    runs.write_clips(root / "data")
    bucket.copy(root / "data", "data")
    return root


@pytest.fixture(scope="module")
def study(root) -> kill.Study:
    """A run on a disk that nothing disturbed, to be compared with those on the bucket."""
    start = functools.partial(commands.start, pause=0.02)
    place = host.path(f"{ROOT}/runs"), f"{ROOT}/data"
    return kill.Study(runs.MUSIC2VEC, root, start, OFTEN, *place)


@pytest.fixture(scope="module")
def survived(study, bucket) -> Path:
    """The workdir of a run that was killed in training and while it saved, through errors."""
    faults = Fault("503", "", every=40), Fault("reset", "", skip=7, every=60)
    with bucket.suffering(*faults, Fault("lost", "(POST|PUT) .*upload", every=25)):
        kills, wrong = study.run(1, "cache", ["training", "saving"])
        counts = bucket.counts
    assert not wrong and kills.total() == 2 and not kills["ended before"], (kills, wrong)
    assert counts["faults_503"] > 5 and counts["faults_reset"] > 5 and counts["faults_lost"] > 1
    return host.path(f"{ROOT}/runs/run-1")


def test_a_run_that_was_killed_ends_as_one_on_a_disk_that_was_not(survived, study):
    assert steps_on_disk(survived) == steps_on_disk(study.root / "reference")
