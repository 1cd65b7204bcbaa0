"""The loop, in this process, on fabricated batches."""

import json
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicssl import audio
from musicssl.objectives import data2vec
from musicssl.runtime import checkpoint, sharding
from musicssl.runtime.workdir import steps_on_disk
from musicssl.training import loop
from musicssl.training import step as step_lib
from tests.support import runs
from tests.support.sessions import STEPS, Session, clips, config, with_codebook

pytestmark = pytest.mark.usefixtures("compiled_once", "silence_is_nan", "traced_once", "sigterm")


def test_a_run_logs_and_saves_when_due_and_at_the_end(unbroken, capsys):
    assert [step for step, _ in unbroken.rows] == [4, 8, 12, 14]
    # every 3 and the last; of these the newest 2 and multiples of 6
    assert steps_on_disk(unbroken.workdir) == [0, 6, 12, 14]
    state = runs.state(unbroken.workdir)
    assert state["step"] == state["updates"] == STEPS
    assert all(np.isfinite(x).all() for x in state.values())
    for _, scalars in unbroken.rows:
        assert all(np.isfinite(x) for x in scalars.values())
        assert scalars["nonfinite"] == 0 and 0.3 < scalars["masked_fraction"] < 0.65
    hours = STEPS * 4 * audio.crop_samples(unbroken.config.data.crop_frames) / 16_000 / 3600
    assert unbroken.rows[-1][1]["audio_hours"] == pytest.approx(hours)


def test_logged_scalars_are_means_of_the_steps_since_the_last_log(unbroken):
    """Against the step itself, called by hand."""
    tiny_config, mesh = unbroken.config, unbroken.mesh
    state = step_lib.sharded_init(tiny_config, mesh)
    step = step_lib.make_step(tiny_config, mesh)
    losses, norms = [], []
    for number in range(8):
        with jax.set_mesh(mesh):
            state, metrics = step(state, {}, clips(tiny_config, number))
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    for row, begin in ((0, 0), (1, 4)):
        scalars = unbroken.rows[row][1]
        assert scalars["loss"] == pytest.approx(np.mean(losses[begin : begin + 4]), rel=1e-6)
        assert scalars["grad_norm"] == pytest.approx(np.mean(norms[begin : begin + 4]), rel=1e-6)
    assert len(set(losses)) == 8


def test_a_complete_run_says_so_and_changes_nothing(unbroken, capsys):
    before = {p: p.stat().st_mtime_ns for p in (unbroken.workdir / "checkpoints").rglob("*")}
    again = Session(unbroken.config, unbroken.workdir)
    assert again.run()
    assert f"complete: step {STEPS} of {STEPS}" in capsys.readouterr().out
    assert not again.rows
    after = {p: p.stat().st_mtime_ns for p in (unbroken.workdir / "checkpoints").rglob("*")}
    assert after == before and len(before) > 10


def test_a_run_starts_from_the_weights_that_it_is_given(unbroken, tmp_path, capsys):
    session = Session(config({"start_from": str(unbroken.workdir)}), tmp_path)
    saved = checkpoint.Checkpoints(tmp_path, session.config)
    state = loop.initial_state(session.config, session.mesh, saved)
    saved.close()
    assert f"starting from the weights of encoder of {unbroken.workdir}" in capsys.readouterr().out
    weights, teacher, _, _ = checkpoint.load_params(unbroken.workdir)
    student, first = runs.named(weights["encoder"]), runs.named(state.teacher["encoder"])
    assert runs.differences(runs.named(state.params["encoder"]), student) == []
    assert all((first[name] == student[name]).all() for name in first)
    assert first.keys() == runs.named(teacher["encoder"]).keys()
    fresh = runs.named(step_lib.sharded_init(session.config, session.mesh).params["head"])
    assert all((x == fresh[name]).all() for name, x in runs.named(state.params["head"]).items())
    step = step_lib.make_step(session.config, session.mesh)
    with jax.set_mesh(session.mesh):  # which donates the state
        state = step(state, {}, clips(session.config, 0))[0]
    after, mixed = runs.named(state.params["encoder"]), runs.named(state.teacher["encoder"])
    assert all(np.abs(after[name] - student[name]).max() > 0 for name in first)
    decay = data2vec.ema_decay(session.config, 1)
    for name in first:
        expected = decay * first[name] + (1 - decay) * after[name]
        np.testing.assert_allclose(mixed[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "leaves, message",
    [
        ({"encoder.ffn_width": 32}, r"encoder\.ffn_width \(64 there, 32 here\)"),
        ({"data.normalize": False}, r"data\.normalize \(True there, False here\)"),
        ({"start_from": "nowhere"}, "nowhere holds no encoder"),
    ],
)
def test_weights_that_do_not_fit_are_refused(unbroken, tmp_path, leaves, message):
    session = Session(config({"start_from": str(unbroken.workdir)} | leaves), tmp_path)
    saved = checkpoint.Checkpoints(tmp_path, session.config)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        loop.initial_state(session.config, session.mesh, saved)
    saved.close()


@pytest.mark.slow
def test_probes_come_after_the_log_and_neither_they_nor_a_trace_change_anything(
    unbroken, tmp_path, capsys
):
    session = Session(config({"probe.every": 6, "profile": "5:7"}), tmp_path)
    assert session.run()
    assert f"the trace of steps 5 to 6 is in {tmp_path}/plugins/profile" in capsys.readouterr().out
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    probed = [(step, "probe/norm" in scalars) for step, scalars in session.rows]
    assert probed == [(4, False), (6, True), (8, False), (12, False), (12, True), (14, False)]
    norms = dict(session.rows)
    assert norms[6]["probe/norm"] != norms[12]["probe/norm"] > 0
    assert runs.differences(runs.state(unbroken.workdir), runs.state(tmp_path)) == []
    with pytest.raises(ValueError, match=r"probe.every is -1"):
        loop.check(config({"probe.every": -1}), session.mesh)


def test_each_checkpoint_holds_config_and_commit(unbroken):
    git = ["git", "-C", str(runs.ROOT), "rev-parse", "--verify", "-q", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    for step in steps_on_disk(unbroken.workdir):
        path = unbroken.workdir / f"checkpoints/{step}/about/metadata"
        about = json.loads(path.read_text())
        assert about["config"] == json.loads(unbroken.config.to_json())
        assert about["step"] == step
        commit = about["commit"].removesuffix("-dirty")
        assert len(commit) in (0, 40) and (commit or not head)
    assert json.loads((unbroken.workdir / "config.json").read_text()) == about["config"]


def test_parameters_load_as_the_state_holds_them(unbroken):
    state = runs.state(unbroken.workdir)
    params, teacher, saved_config, step = checkpoint.load_params(unbroken.workdir)
    assert step == STEPS and saved_config.to_json() == unbroken.config.to_json()
    expected = {k: v for k, v in state.items() if k.startswith(("params/", "teacher/"))}
    assert runs.differences(runs.named({"params": params, "teacher": teacher}), expected) == []
    earlier = checkpoint.load_params(unbroken.workdir, 6)
    assert earlier[3] == 6
    kernel = earlier[0]["encoder"]["layer_0"]["feed_forward"]["intermediate_dense"]["kernel"]
    same = params["encoder"]["layer_0"]["feed_forward"]["intermediate_dense"]["kernel"]
    assert (kernel != same).any()


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda path: Session(config(), path), with_codebook])
def test_nothing_is_moved_implicitly_between_host_and_devices(tmp_path, make):
    """The whole loop, saves and logs included; a NumPy codebook would be moved at each step."""
    session = make(tmp_path)
    begin = session.open

    def guarded(first: int) -> Iterator[jax.Array]:
        batches = begin(first)
        yield next(batches)  # the first step compiles, which makes constants
        jax.config.update("jax_transfer_guard", "disallow")
        yield from batches

    session.open = guarded
    try:
        assert session.run()
        assert jax.config.jax_transfer_guard == "disallow"
        with pytest.raises(Exception, match="Disallowed host-to-device"):
            jnp.add(np.float32(1), np.ones(3)).block_until_ready()
    finally:
        jax.config.update("jax_transfer_guard", "allow")


class Spy:
    """A scalar on the device that notes when the host waits for it or reads it."""

    def __init__(self, value: jax.Array, made_at: int, clock: list[int], seen: list):
        self.value, self.made_at, self.clock, self.seen = value, made_at, clock, seen

    def block_until_ready(self) -> "Spy":
        self.seen.append(("wait", self.made_at, self.clock[0]))
        return self

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        self.seen.append(("read", self.made_at, self.clock[0]))
        return np.asarray(self.value)


def test_the_host_reads_at_logs_and_otherwise_waits_for_old_steps_alone(tmp_path, monkeypatch):
    session, steps, seen = Session(config(), tmp_path), [0], []
    make_step = step_lib.make_step

    def spied(*arguments):
        step = make_step(*arguments)

        def run(state, frozen, batch):
            state, metrics = step(state, frozen, batch)
            steps[0] += 1
            spies = {k: Spy(v, steps[0], steps, seen) for k, v in metrics.items()}
            return state, spies

        run.lower = lambda *_: SimpleNamespace(compile=lambda: run)
        return run

    monkeypatch.setattr(step_lib, "make_step", spied)
    assert session.run()
    reads = {now for what, _, now in seen if what == "read"}
    assert reads == {4, 8, 12, 14}
    waits = [now - made for what, made, now in seen if what == "wait" and now > 1]
    assert waits and min(waits) == loop.AHEAD


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"batch_size": 6, "mask.equal_counts": 2, "accumulate": 4}, "multiple of 4"),
        ({"accumulate": 0}, "accumulate is 0: use 1 or more"),
        ({"nonfinite": "hope"}, "nonfinite is 'hope': use 'stop' or 'skip'"),
        ({"data.on_damage": "hope"}, "data.on_damage is 'hope': use 'stop' or 'skip'"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0: use 1 or more"),
        ({"encoder.layerdrop": 1.0}, "encoder.layerdrop is 1.0: use a number from 0 to below 1"),
        ({"mask.probability": -1.0}, "mask.probability is -1.0: use a number above 0, up to 1"),
        ({"optim.learning_rate": float("nan")}, "optim.learning_rate is nan"),
        ({"log_every": 0}, "log_every is 0"),
        ({"checkpoint.every": 0}, "checkpoint.every is 0"),
        ({"checkpoint.keep_every": 0}, "checkpoint.keep_every is 0"),
        ({"mask.equal_counts": 3}, "mask.equal_counts is 3"),
        ({"data.crop_frames": 1}, "data.crop_frames"),
        ({"precision": "float16"}, "precision is 'float16'"),
        ({"encoder.heads": 5}, "encoder.heads is 5: choose a divisor of the width, 32"),
        ({"encoder.pos_conv_groups": 3}, "encoder.pos_conv_groups is 3"),
        ({"optim.schedule": "sine"}, "optim.schedule is 'sine'"),
        ({"method": "mae"}, "method is 'mae'"),
        ({"profile": "5:5"}, "profile is '5:5': use START:STOP"),
        ({"tracker": "mlflow"}, "tracker is 'mlflow'"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_field(leaves, message):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    loop.check(config(), mesh)
    with pytest.raises(ValueError, match=message.replace("(", "\\(")) as refused:
        loop.check(config(leaves), mesh)
    assert "\n" not in str(refused.value)
