"""What ends a run before its last step, and what is on disk then."""

import os
import signal
from collections.abc import Callable

import numpy as np
import pytest

from musicssl.runtime.preemption import Preemption
from musicssl.runtime.workdir import steps_on_disk
from musicssl.training import loop
from tests.support import runs
from tests.support.sessions import STEPS, Session, clips, config, copies_config, with_codebook

pytestmark = pytest.mark.usefixtures("compiled_once", "silence_is_nan", "traced_once", "sigterm")


@pytest.mark.slow
def test_sigterm_in_a_probe_leaves_it_out_and_saves(tmp_path, capsys):
    session = Session(config({"probe.every": 5}), tmp_path)
    asked = Preemption()

    def look(step: int, params: dict, poll: Callable[[], None]) -> dict[str, float]:
        poll()  # of nothing
        asked.ask()
        poll()
        return {"probe/never": 1.0}

    session.look, session.preemption = look, asked
    assert not session.run()
    assert steps_on_disk(tmp_path)[-1] == 5
    assert [step for step, _ in session.rows] == [4]
    assert "asked to end during the probe of step 5, which is abandoned" in capsys.readouterr().out


class Crash(Exception):
    """Stands for anything that ends a process."""


@pytest.mark.parametrize("at", [2, 7])
def test_a_crash_costs_the_steps_since_the_last_save(unbroken, tmp_path, at, capsys):
    session = Session(config(), tmp_path)

    def crashing(step: int) -> np.ndarray:
        if step == at:
            raise Crash
        return clips(session.config, step)

    session.batch = crashing
    with pytest.raises(Crash):
        session.run()
    assert steps_on_disk(tmp_path)[-1] == at // 3 * 3
    again = Session(config(), tmp_path)
    assert again.run()
    assert f"going on from step {at // 3 * 3} of {STEPS}" in capsys.readouterr().out
    assert runs.differences(runs.state(unbroken.workdir), runs.state(tmp_path)) == []
    assert again.logged("loss")[-1:] == unbroken.logged("loss")[-1:]


@pytest.mark.slow
def test_a_run_of_masked_copies_goes_on_after_a_crash_with_the_same_bits(tmp_path):
    """data2vec 2.0, whose decoder draws noise besides masks and dropout."""
    short = copies_config()
    short.steps, short.log_every = 5, 1
    whole, broken = (Session(short, tmp_path / name) for name in ("whole", "broken"))
    assert whole.run()

    def crashing(step: int) -> np.ndarray:
        if step == 4:
            raise Crash
        return clips(broken.config, step)

    broken.batch = crashing
    with pytest.raises(Crash):
        broken.run()
    assert Session(broken.config, broken.workdir).run()
    saved = runs.state(whole.workdir)
    assert runs.differences(saved, runs.state(broken.workdir)) == []
    assert all(np.isfinite(x).all() for x in saved.values())
    losses = [loss for _, loss in whole.logged("loss")]
    assert len(set(losses)) == len(losses) and min(losses) > 0


@pytest.mark.slow
def test_sigterm_saves_where_it_is_and_the_run_goes_on(unbroken, tmp_path, capsys):
    session = Session(config(), tmp_path)

    def ending(step: int) -> np.ndarray:
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return clips(session.config, step)

    session.batch = ending
    assert not session.run()
    assert steps_on_disk(tmp_path)[-1] == 8  # not due: the step under way ended
    assert "asked to end at step 8: saved" in capsys.readouterr().out
    again = Session(config(), tmp_path)
    assert again.run()
    assert runs.differences(runs.state(unbroken.workdir), runs.state(tmp_path)) == []


def silent_at(session: Session, *steps: int) -> None:
    """Give the run silence at these steps."""

    def batch(step: int) -> np.ndarray:
        sound = clips(session.config, step)
        return np.zeros_like(sound) if step in steps else sound

    session.batch = batch


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_and_was_not_applied(tmp_path):
    session = Session(config({"checkpoint.every": 1, "checkpoint.keep": 9}), tmp_path)
    silent_at(session, 5)
    with pytest.raises(loop.TrainingStopped) as stopped:
        session.run()
    message = str(stopped.value)
    assert "1 losses or gradients between steps 4 and 8 were not finite" in message
    assert "optim.learning_rate" in message and "nonfinite=skip" in message
    assert steps_on_disk(tmp_path)[-1] == 7
    newest = runs.state(tmp_path)
    assert all(np.isfinite(x).all() for x in newest.values())
    assert newest["step"] == 7 and newest["updates"] == 6


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_skipped_and_counted(tmp_path):
    leaves = {"nonfinite": "skip", "checkpoint.every": 1, "checkpoint.keep": 99}
    session = Session(config(leaves), tmp_path)
    silent_at(session, 5, 6, 9)
    assert session.run()
    assert session.logged("nonfinite") == [(4, 0), (8, 2), (12, 1), (14, 0)]
    assert all(np.isfinite(value) for _, value in session.logged("loss"))
    at = {step: runs.state(tmp_path, step) for step in (5, 6, 7, 8, 14)}
    assert runs.differences(at[5], at[6]) == ["step"]
    assert runs.differences(at[6], at[7]) == ["step"]
    assert len(runs.differences(at[7], at[8])) > 20
    assert (at[14]["step"], at[14]["updates"]) == (STEPS, STEPS - 3)


def test_a_collapsed_representation_stops_with_what_was_measured(tmp_path):
    session = Session(
        config({"data2vec.min_target_std": 50.0, "data2vec.guard_after": 4}), tmp_path
    )
    with pytest.raises(loop.TrainingStopped) as stopped:
        session.run()
    measured = session.rows[-1][1]["target_std"]
    assert f"at step 8 target_std is {measured:.4f}, below data2vec.min_target_std = 50" in str(
        stopped.value
    )
    assert "learning_rate" in str(stopped.value)
    assert steps_on_disk(tmp_path)[-1] == 6


@pytest.mark.slow
def test_labels_that_are_all_alike_stop_the_run(tmp_path):
    far = np.full((6, 39), 1e4)
    far[0] = 0
    session = with_codebook(tmp_path, far)
    with pytest.raises(loop.TrainingStopped, match=r"the labels' perplexity is 1\.00"):
        session.run()
