"""Checkpoints on a bucket: what is committed there; a bucket that is away is no damage."""

import errno
import json
from pathlib import Path

import jax
import pytest

from data_pipelines import retries
from musicssl import host
from musicssl.runtime import checkpoint, digests
from musicssl.runtime.checkpoint import Checkpoints
from musicssl.runtime.workdir import claim, require_writable, steps_on_disk
from tests.runtime.test_checkpoint import abstract, same
from tests.support.bucket import ROOT, Bucket, Fault
from tests.support.saved_states import config, made_state

GONE = Fault("503", "")


@pytest.fixture(autouse=True)
def impatient(bucket, monkeypatch):
    monkeypatch.setattr(retries, "PATIENCE", 0.1)


@pytest.fixture(scope="module")
def saved(bucket: Bucket) -> Path:
    """A workdir on the bucket with two saves."""
    workdir = host.path(f"{ROOT}/saved")
    claim(workdir, config())
    checkpoints = Checkpoints(workdir, config())
    for step in (2, 4):
        checkpoints.save(step, made_state(step), force=True)
    checkpoints.close()
    return workdir


def test_a_state_comes_back_to_the_bit(saved):
    assert steps_on_disk(saved) == [2, 4]
    checkpoints = Checkpoints(saved, config())
    assert checkpoints.latest() == 4
    assert same(checkpoints.restore(4, abstract()), made_state(4))
    checkpoints.close()
    params, _, _, step = checkpoint.load_params(saved)
    assert step == 4 and same(params, jax.device_get(made_state(4).params))


def test_damage_is_found_and_set_aside_when_asked(saved, bucket, capsys):
    for name, content in bucket.files("saved/").items():
        bucket.put(name.replace("saved/", "harmed/"), content)
    named = [name for name in bucket.files("harmed/checkpoints/4/state/d/") if name[-1] != "/"]
    bucket.put(named[0], b"other")
    harmed = host.path(f"{ROOT}/harmed")
    assert "is not what was saved" in checkpoint.damage(harmed / "checkpoints/4")
    older = config({"checkpoint.on_damage": "older"})
    checkpoints = Checkpoints(harmed, older)
    assert checkpoints.latest() == 2 and steps_on_disk(harmed) == [2]
    checkpoints.close()
    assert f"step 4 is damaged (state/d/{Path(named[0]).name} is not" in capsys.readouterr().out
    assert bucket.files("harmed/damaged/4-")


def away(work) -> OSError:
    with pytest.raises(OSError) as caught:
        work()
    assert caught.value.errno == errno.EIO
    return caught.value


def test_a_bucket_that_is_away_is_no_damage(saved, bucket):
    older = config({"checkpoint.on_damage": "older"})
    checkpoints = Checkpoints(saved, older)
    with bucket.suffering(Fault("503", "digests|/d/")):
        away(checkpoints.latest)
        away(lambda: checkpoint.load_params(saved))
        away(lambda: checkpoints.restore(4, abstract()))
    assert checkpoints.latest() == 4 and not bucket.files("saved/damaged")
    checkpoints.close()
    with bucket.suffering(GONE):
        away(lambda: steps_on_disk(saved))
        away(lambda: require_writable(saved))


def test_a_save_that_a_bucket_does_not_take_leaves_those_before_it(saved, bucket):
    checkpoints = Checkpoints(saved, config())
    with bucket.suffering(Fault("503", "(POST|PUT)")):
        failed = away(lambda: (checkpoints.save(6, made_state(6), True), checkpoints.confirm()))
    assert "Those before it are intact: check the bucket, and run" in str(failed)
    assert steps_on_disk(saved) == [2, 4]
    again = Checkpoints(saved, config())
    again.save(6, made_state(6), force=True)
    again.close()
    assert steps_on_disk(saved) == [4, 6] and same(
        checkpoint.load_params(saved)[0], jax.device_get(made_state(6).params)
    )


def test_a_save_that_a_bucket_does_not_show_is_not_called_damaged(bucket):
    """As when a login has expired; what is missing or changed is still told."""
    bucket.put("shown/about/metadata", b"{}")
    bucket.put("shown/about/digests.json", json.dumps({"metadata": "0"}).encode())
    about = host.path(f"{ROOT}/shown/about")
    for file in ("digests", "metadata"):
        with bucket.suffering(Fault("403", f"GET .*{file}")), pytest.raises(PermissionError):
            digests.damage(about)
    assert digests.damage(about) == "about/metadata is not what was saved"
    assert digests.damage(host.path(f"{ROOT}/shown/state")) == "state/digests.json is missing"
