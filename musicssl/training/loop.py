"""The training loop: restore, then save, batch, step, log, in that order, to the last step."""

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from musicssl import audio
from musicssl.command import say
from musicssl.exchange import pretrained
from musicssl.exchange.loaded import architecture
from musicssl.model.encoder import make_encoder
from musicssl.runtime import distributed, goodput, profiler, sharding
from musicssl.runtime.checkpoint import Checkpoints
from musicssl.runtime.preemption import Preempted, Preemption
from musicssl.runtime.workdir import best_step, flat, is_better
from musicssl.training import flops, tracker, validation
from musicssl.training import step as step_lib

_CHOICES = {
    "nonfinite": ("stop", "skip"),
    "data.on_damage": ("stop", "skip"),
    "data.order": ("shuffled", "blocks"),
    "checkpoint.on_damage": ("stop", "older"),
    "precision": ("float32", "bfloat16"),
}
_DROPOUTS = (
    *("encoder.dropout", "encoder.attention_dropout", "encoder.activation_dropout"),
    *("encoder.input_dropout", "encoder.layerdrop"),
)
AHEAD = 2  # steps the host may run ahead of the devices; between logs it copies nothing back


class TrainingStopped(Exception):
    """A run cannot continue; the message says what was measured and what usually helps."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that a run consists of, except its state; the input of `train`.

    Attributes:
      config: the run's configuration, accepted by `check`.
      mesh: the devices that the state and the batches are spread over.
      checkpoints: where the state is saved.
      frozen: the part of the teacher that training does not change ({} for data2vec).
      preemption: asked at each step; it may exist for longer than `train` runs.
      open_batches: called with the first step to train; returns the global batches of int16 audio
        [b, n] from that step on, placed on the mesh.
      on_scalars: called on every process with a step and its scalars to log.
      take_probe: called every config.probe.every steps on every process; returns scalars to log.
        Its arguments are the step, the parameters, and a function to call between pieces of work,
        which raises `Preempted` if the probe has to be abandoned.
      open_validation: returns batches of the validation split in the form of training batches, the
        same at every call; called once, if config.validate.every is set.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    checkpoints: Checkpoints
    frozen: dict
    preemption: Preemption
    open_batches: Callable[[int], Iterator[jax.Array]]
    on_scalars: Callable[[int, dict[str, float]], None]
    take_probe: Callable[[int, dict, Callable[[], None]], dict[str, float]]
    open_validation: Callable[[], Iterator[jax.Array]] = lambda: iter(())


def check(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Refuse a configuration that cannot be trained, before anything is built.

    Raises:
      ValueError: the message names the field and the remedy.
    """
    _check_values(flat(config.to_dict()))
    if config.accumulate < 1:
        raise ValueError(f"accumulate is {config.accumulate}: use 1 or more")
    unit = config.accumulate * mesh.size
    if config.batch_size % unit:
        raise ValueError(
            f"batch_size is {config.batch_size}, which is not a multiple of {unit}: {mesh.size} "
            f"devices times accumulate={config.accumulate}; choose a multiple of that"
        )

    width = config.encoder.width
    for name in ("heads", "pos_conv_groups"):
        value = config.encoder[name]
        if value < 1 or width % value:
            raise ValueError(f"encoder.{name} is {value}: choose a divisor of the width, {width}")

    # Tracing the masks and the state raises ValueError if their settings do not fit.
    samples = audio.crop_samples(config.data.crop_frames)
    clips = jax.ShapeDtypeStruct((config.batch_size, samples), np.int16)
    key = step_lib.streams(config.seed, 0)["mask"]
    jax.eval_shape(lambda x: step_lib.prepare(config, key, x), clips)
    step_lib.state_shapes(config)
    validation.check(config)


def _check_values(leaves: dict[str, Any]) -> None:
    """Refuse values that are wrong whatever the other values are.

    Args:
      leaves: the configuration's, by names spelt as on the command line.

    Raises:
      ValueError: the message names the leaf and its allowed values.
    """
    for name, choices in _CHOICES.items():
        if leaves[name] not in choices:
            raise ValueError(f"{name} is {leaves[name]!r}: use '{choices[0]}' or '{choices[1]}'")

    profiler.steps(leaves["profile"])
    tracker.check(leaves["tracker"])

    # Counts, then shares.
    saves = (f"checkpoint.{x}" for x in ("every", "keep", "keep_every"))
    for name in ("steps", "batch_size", "log_every", *saves):
        if leaves[name] < 1:
            raise ValueError(f"{name} is {leaves[name]}: use 1 or more")
    if leaves["probe.every"] < 0:
        raise ValueError(f"probe.every is {leaves['probe.every']}: use a number of steps or 0")
    for name in _DROPOUTS:
        if not 0 <= leaves[name] < 1:
            raise ValueError(f"{name} is {leaves[name]}: use a number from 0 to below 1")
    if not 0 < leaves["mask.probability"] <= 1:
        share = leaves["mask.probability"]
        raise ValueError(f"mask.probability is {share}: use a number above 0, up to 1")
    if not 0 < leaves["optim.learning_rate"] < np.inf:
        rate = leaves["optim.learning_rate"]
        raise ValueError(f"optim.learning_rate is {rate}: use a number above 0")


def train(run: Run, state: step_lib.TrainState) -> bool:
    """Train from a state to config.steps.

    Args:
      state: from `initial_state`; it is consumed.

    Returns:
      True when complete, False when preempted: the state is saved, and the same call resumes.

    Raises:
      TrainingStopped: the representation collapsed, or a loss is not finite.
    """
    config, mesh, checkpoints = run.config, run.mesh, run.checkpoints
    first = int(state.step)
    if first >= config.steps:
        say(f"complete: step {first} of {config.steps} is in {checkpoints.directory}")
        checkpoints.close()
        return True

    checkpoints.check_space(state)
    validate = _Validation(run) if config.validate.every else None
    batches = run.open_batches(first)
    advance: Any = step_lib.make_step(config, mesh)
    clock = _Clock(config, mesh, first)
    profile = profiler.Profile(config.profile, checkpoints.directory.parent)
    metrics: list[dict[str, jax.Array]] = []
    running: deque = deque()
    try:
        # The order is fixed: save the state after `step` steps, then get the batch, take the step,
        # log, validate, probe. The last step goes through the same lines.
        with distributed.together() as alive:
            for step in range(first, config.steps + 1):
                # Save, if it is due.
                preempted = run.preemption.reached(step)
                best = validate is not None and validate.best_step == step > first
                with goodput.lost("save"):
                    checkpoints.save(step, state, force=preempted or best)
                if preempted or step == config.steps:
                    break

                # The batch.
                with goodput.lost("input"):
                    batch = next(batches)

                # The step, which is compiled before its first use.
                compiling = goodput.lost("compile") if step == first else contextlib.nullcontext()
                with jax.set_mesh(mesh), compiling:
                    if step == first:
                        advance = advance.lower(state, run.frozen, batch).compile()
                        distributed.meet("all have compiled")
                    profile.start(step, state)
                    with jax.profiler.StepTraceAnnotation("train", step_num=step):
                        state, measured = advance(state, run.frozen, batch)
                    if step == first:
                        clock.compiled(measured["loss"])
                metrics.append(measured)
                running.append(measured["loss"])
                if len(running) > AHEAD:
                    jax.block_until_ready(running.popleft())
                profile.stop(step + 1, measured)
                goodput.record(step + 1)
                alive()

                # The log, the validation and the probe, if they are due.
                if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                    scalars = _summarise(jax.device_get(metrics))
                    metrics.clear()
                    clock.report(step + 1, scalars)
                    run.on_scalars(step + 1, scalars)
                    _guard(config, scalars, step + 1)
                if validate and validate.is_due(step + 1):
                    with clock.stopped(), goodput.lost("validation"):
                        validate.look(step + 1, state)
                if config.probe.every and (step + 1) % config.probe.every == 0:
                    with clock.stopped(), goodput.lost("probe"):
                        _log_probe(run, step + 1, state.params, alive)
    finally:
        profile.close()
        with goodput.lost("save"):
            checkpoints.close()
        goodput.write()

    say(goodput.line())
    if preempted:
        say(f"asked to end at step {step}: saved; run the same command to resume")
    return not preempted


class _Validation:
    """Validates, and keeps track of the best step so far."""

    def __init__(self, run: Run):
        self.run, self.score = run, run.config.validate.score
        best = best_step(run.checkpoints.directory.parent, self.score)
        self.best_step: int | None = best[0] if best else None
        self.best: float | None = best[1] if best else None
        run.checkpoints.best.step = self.best_step
        with goodput.lost("validation"):
            batches = validation.read(run.open_validation(), run.config)
            self.looker = validation.make(run.config, run.mesh, batches)

    def is_due(self, step: int) -> bool:
        """Return whether to validate at a step; the last one is always validated."""
        config = self.run.config
        return step % config.validate.every == 0 or step == config.steps

    def look(self, step: int, state: step_lib.TrainState) -> None:
        """Log a state's loss and health, and note the step if it is the best so far."""
        scalars = self.looker(state, self.run.frozen)
        self.run.on_scalars(step, scalars)
        value = scalars[f"validation/{self.score}"]
        line = f"step {step}  validation {self.score} {value:.4f}"
        if is_better(self.score, value, self.best):
            self.best_step, self.best = step, value
            self.run.checkpoints.best.step = step
            line += " (best)"
        ranks = [f"{scalars[f'health/{name}_rank']:.1f}" for name in ("stem", "layer_0")]
        last = f"{scalars[f'health/layer_{self.run.config.encoder.layers}_rank']:.1f}"
        say(f"{line}  effective rank: stem {ranks[0]}, layers {ranks[1]} to {last}")


def _log_probe(run: Run, step: int, params: dict, alive: Callable[[], None]) -> None:
    """Take a probe and log its scalars; abandon it if the run is asked to end."""

    def poll() -> None:
        alive()
        run.preemption.poll()

    try:
        scalars = run.take_probe(step, params, poll)
    except Preempted:
        say(f"asked to end during the probe of step {step}, which is abandoned")
        return
    run.on_scalars(step, scalars)
    say(f"step {step}  " + "  ".join(f"{name} {value:.4f}" for name, value in scalars.items()))


def initial_state(
    config: ml_collections.ConfigDict, mesh: Mesh, checkpoints: Checkpoints
) -> step_lib.TrainState:
    """Return the newest checkpoint's state on this mesh, whichever mesh wrote it, or a new state.

    Raises:
      ValueError: a checkpoint cannot be restored, or config.start_from does not fit.
    """
    step = checkpoints.latest()
    if step is None:
        weights = _starting_weights(config) if config.start_from else None
        state = step_lib.sharded_init(config, mesh)
        if weights is None:
            return state
        return step_lib.with_encoder_weights(config, mesh, state, weights)

    shapes = step_lib.state_shapes(config)
    shardings = sharding.state_shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    state = checkpoints.restore(step, abstract)
    say(f"going on from step {step} of {config.steps}{_moved(checkpoints.about_step(step))}")
    if changes := checkpoints.changes(step):
        say(f"these have changed since that save, so results may differ: {changes}")
    return state


def _starting_weights(config: ml_collections.ConfigDict) -> dict:
    """Load the encoder's parameters from config.start_from, as NumPy arrays; heads stay new.

    Raises:
      ValueError: the encoder there has another shape, or other input, than this run's.
    """
    loaded = pretrained.load_encoder(config.start_from)
    there = {f"encoder.{name}": x for name, x in architecture(loaded.encoder).items()}
    there |= {"data.normalize": loaded.normalize, "data.sample_rate": loaded.sample_rate}
    here = {f"encoder.{name}": x for name, x in architecture(make_encoder(config)).items()}
    here |= {"data.normalize": config.data.normalize, "data.sample_rate": config.data.sample_rate}

    differing = [name for name in here if there[name] != here[name]]
    if differing:
        both = [f"{name} ({there[name]} there, {here[name]} here)" for name in differing]
        raise ValueError(
            f"start_from {config.start_from} does not fit: {', '.join(both)}. Use the values from "
            "there, or start from another encoder"
        )
    say(f"starting from the weights of {loaded.source}")
    return loaded.params


def _moved(saved: dict) -> str:
    """Describe how these machines differ from those that wrote a checkpoint; "" if they do not.

    Args:
      saved: what the checkpoint says about the machines that wrote it.
    """
    here = {"processes": jax.process_count(), "devices": jax.device_count()}
    changed = [
        f"{saved[name]} {name} when saved, {count} now"
        for name, count in here.items()
        if saved[name] != count
    ]
    return f" ({'; '.join(changed)}: batches and masks are unchanged)" if changed else ""


def _summarise(metrics: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Average the finite steps since the last log, or all if none is finite; count the others."""
    finite = [m for m in metrics if not m["nonfinite"]] or metrics
    scalars = {}
    for name in metrics[0]:
        scalars[name] = float(np.mean([m[name] for m in finite]))
    scalars["learning_rate"] = float(metrics[-1]["learning_rate"])
    scalars["nonfinite"] = float(sum(m["nonfinite"] for m in metrics))
    return scalars


def _guard(config: ml_collections.ConfigDict, scalars: dict[str, float], step: int) -> None:
    """Stop a run with losses that were not finite, or whose representation has collapsed.

    Raises:
      TrainingStopped: with what was measured and what usually helps.
    """
    bad = int(scalars["nonfinite"])
    if bad and config.nonfinite == "stop":
        begin = max(0, (step - 1) // config.log_every * config.log_every)
        raise TrainingStopped(
            f"{bad} losses or gradients between steps {begin} and {step} were not finite. None of "
            "those updates was applied. A lower optim.learning_rate or optim.clip_norm=1 usually "
            "helps; --config.nonfinite=skip leaves such batches out and counts them"
        )
    reason = step_lib.objective(config).collapse(config, scalars, step)
    if reason:
        raise TrainingStopped(f"at step {step} {reason}")


class _Clock:
    """A run's speed since the last report, and the line that reports it."""

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh, first: int):
        self.config = config
        samples = audio.crop_samples(config.data.crop_frames)
        self.batch_seconds = config.batch_size * samples / config.data.sample_rate
        self.flops = flops.train_step(config)
        peak = flops.peak(mesh.devices.flat[0])
        self.peak = None if peak is None else peak * mesh.size
        self.began, self.step = time.monotonic(), first

    def compiled(self, result: jax.Array) -> None:
        """Leave the first step, which includes compilation, out of the speed."""
        jax.block_until_ready(result)
        say(f"first step done after {time.monotonic() - self.began:.1f} s, including compilation")
        self.began, self.step = time.monotonic(), self.step + 1

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave the time spent in here out of the speed."""
        before = time.monotonic()
        yield
        self.began += time.monotonic() - before

    def report(self, step: int, scalars: dict[str, float]) -> None:
        """Print the progress line and add the speed to the scalars."""
        now, steps = time.monotonic(), step - self.step

        # The audio heard, the speed, the share of the peak rate and the time left.
        hours = step * self.batch_seconds / 3600
        scalars["audio_hours"] = hours
        line = f"step {step}/{self.config.steps}  loss {scalars['loss']:.4f}  {hours:.2f} audio-h"
        if steps:
            pace = (now - self.began) / steps
            scalars["audio_seconds_per_second"] = self.batch_seconds / pace
            line += f"  {self.batch_seconds / pace:,.0f} audio-s/s"
            if self.peak:
                scalars["mfu"] = self.flops / pace / self.peak
                line += f"  MFU {scalars['mfu']:.1%}"
            left = (self.config.steps - step) * pace
            line += f"  ETA {int(left // 3600)}:{int(left // 60 % 60):02}:{int(left % 60):02}"

        scalars |= goodput.shares()
        if scalars["nonfinite"]:
            line += f"  {scalars['nonfinite']:.0f} updates skipped"
        say(line)
        self.began, self.step = now, step
