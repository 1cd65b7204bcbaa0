"""The training loop: restore, then save, batch, step, log, in that order, to the last step."""

import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from musicssl import audio
from musicssl.command import say
from musicssl.exchange import pretrained
from musicssl.exchange.loaded import architecture
from musicssl.model.encoder import make_encoder
from musicssl.runtime import distributed, goodput, sharding
from musicssl.runtime.checkpoint import Checkpoints
from musicssl.runtime.workdir import flat
from musicssl.training import flops
from musicssl.training import step as training

CHOICES = {
    "nonfinite": ("stop", "skip"),
    "data.on_damage": ("stop", "skip"),
    "checkpoint.on_damage": ("stop", "older"),
    "precision": ("float32", "bfloat16"),
}
DROPOUTS = (
    *("encoder.dropout", "encoder.attention_dropout", "encoder.activation_dropout"),
    *("encoder.input_dropout", "encoder.layerdrop"),
)
AHEAD = 2  # steps dispatched before the host waits; it never reads a value of theirs

Write = Callable[[int, dict[str, float]], None]
OpenBatches = Callable[[int], Iterator[jax.Array]]
Probe = Callable[[int, dict, Callable[[], None]], dict[str, float]]


class TrainingStopped(Exception):
    """The run cannot go on: the message says what was measured and what usually helps."""


class Asked(Exception):
    """The machine has asked the job to end, in the middle of work that need not be finished."""


class Preemption:
    """Whether the machine has asked the job to end, agreed on by all processes."""

    def __init__(self) -> None:
        self.asked = False
        if jax.process_count() == 1:  # otherwise jax.distributed listens for SIGTERM
            signal.signal(signal.SIGTERM, self.ask)

    def ask(self, *_) -> None:
        self.asked = True

    def poll(self) -> None:
        """Raises Asked if this process alone was asked: several agree between steps."""
        if self.asked:
            raise Asked

    def reached(self, number: int) -> bool:
        """To be called by all processes at the same places, between steps or batches.

        They agree on a number, one more than the highest that any has asked with, at which all of
        them end. Numbers are not negative: JAX would drop the request. Orbax asks with the step's
        at every save: with another one here a part of the processes would end, and the others wait
        for them. Work before the first step counts up from it, and steps go on from there.
        """
        if jax.process_count() > 1:
            self.asked = multihost_utils.reached_preemption_sync_point(number) or self.asked
        return self.asked


def check(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Refuse what cannot be trained, before anything is built.

    Raises:
      ValueError: naming the field and the remedy.
    """
    check_values(flat(config.to_dict()))
    parts = config.accumulate
    if parts < 1 or config.batch_size % (parts * mesh.size):
        raise ValueError(
            f"batch_size is {config.batch_size}, which {mesh.size} devices times accumulate="
            f"{parts} do not divide: choose a multiple of {max(parts, 1) * mesh.size}"
        )
    width = config.encoder.width
    for name in ("heads", "pos_conv_groups"):
        value = config.encoder[name]
        if value < 1 or width % value:
            raise ValueError(f"encoder.{name} is {value}: choose a divisor of the width, {width}")
    samples = audio.crop_samples(config.data.crop_frames)
    clips = jax.ShapeDtypeStruct((config.batch_size, samples), np.int16)
    key = training.streams(config.seed, 0)["mask"]
    jax.eval_shape(lambda x: training.prepare(config, key, x), clips)  # masks that do not fit raise
    training.state_shapes(config)


def check_values(leaves: dict[str, object]) -> None:
    """Raises ValueError for a leaf, spelt as on the command line, whose own value cannot be."""
    for name, choices in CHOICES.items():
        if leaves[name] not in choices:
            raise ValueError(f"{name} is {leaves[name]!r}: use '{choices[0]}' or '{choices[1]}'")
    saves = (f"checkpoint.{x}" for x in ("every", "keep", "keep_every"))
    for name in ("steps", "batch_size", "log_every", *saves):
        if leaves[name] < 1:
            raise ValueError(f"{name} is {leaves[name]}: use 1 or more")
    if leaves["probe.every"] < 0:
        raise ValueError(f"probe.every is {leaves['probe.every']}: use a number of steps, or 0")
    for name in DROPOUTS:
        if not 0 <= leaves[name] < 1:
            raise ValueError(f"{name} is {leaves[name]}: use 0 to below 1")
    if not 0 < leaves["mask.probability"] <= 1:
        raise ValueError(f"mask.probability is {leaves['mask.probability']}: use above 0, up to 1")
    if not 0 < leaves["optim.learning_rate"] < np.inf:
        rate = leaves["optim.learning_rate"]
        raise ValueError(f"optim.learning_rate is {rate}: use a number above 0")


def train(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    checkpoints: Checkpoints,
    state: training.TrainState,
    frozen: dict,
    open_batches: OpenBatches,
    write: Write,
    probe: Probe,
    preemption: Preemption,
) -> bool:
    """Train from state to config.steps.

    Args:
      state: from `initial_state`; it is consumed.
      frozen: the teacher's fixed part.
      open_batches: first step -> the global batches of int16 audio [b, n] from there, on the mesh.
      write: takes scalars at a step; called on every process.
      probe: takes a step, the parameters and a function that it calls between pieces of work, and
        gives scalars; called every config.probe.every steps on every process.
      preemption: asked at each step; it may listen for longer than this.

    Returns:
      True when complete, False when preempted: state saved, the same call goes on.

    Raises:
      TrainingStopped: collapse, or a loss that is not finite.
    """
    method = training.objective(config)
    first = int(state.step)
    if first >= config.steps:
        say(f"complete: step {first} of {config.steps} is in {checkpoints.directory}")
        checkpoints.close()
        return True

    checkpoints.check_space(state)
    batches = open_batches(first)
    run = training.make_step(config, mesh)
    clock = Clock(config, mesh, first)
    metrics: list[dict[str, jax.Array]] = []
    running: deque = deque()
    try:
        # The order is fixed: save what `step` steps made, then its batch, then the step, then the
        # log, then the probe. The last step goes through the same lines.
        with distributed.together() as alive:
            for step in range(first, config.steps + 1):
                preempted = preemption.reached(step)
                with goodput.lost("save"):
                    checkpoints.save(step, state, force=preempted)
                if preempted or step == config.steps:
                    break
                with goodput.lost("input"):
                    batch = next(batches)
                compiling = goodput.lost("compile") if step == first else contextlib.nullcontext()
                with jax.set_mesh(mesh), compiling:
                    if step == first:
                        run = run.lower(state, frozen, batch).compile()
                        distributed.meet("all have compiled")
                    state, measured = run(state, frozen, batch)
                    if step == first:
                        clock.compiled(measured["loss"])
                metrics.append(measured)
                running.append(measured["loss"])
                if len(running) > AHEAD:
                    jax.block_until_ready(running.popleft())
                alive()
                if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                    scalars = summarise(jax.device_get(metrics))
                    metrics.clear()
                    clock.report(step + 1, scalars)
                    write(step + 1, scalars)
                    guard(config, method, scalars, step + 1)
                if config.probe.every and (step + 1) % config.probe.every == 0:
                    with clock.stopped(), goodput.lost("probe"):
                        take_probe(probe, step + 1, state.params, write, preemption, alive)
    finally:
        with goodput.lost("save"):
            checkpoints.close()
    say(goodput.line())
    if preempted:
        say(f"asked to end at step {step}: saved, run the same command to go on")
    return not preempted


def take_probe(
    probe: Probe,
    step: int,
    params: dict,
    write: Write,
    preemption: Preemption,
    alive: Callable[[], None],
) -> None:
    """Write the scalars of a probe and say them; one that is asked to end is left out."""

    def poll() -> None:
        alive()
        preemption.poll()

    try:
        scalars = probe(step, params, poll)
    except Asked:
        say(f"asked to end in the probe of step {step}, which is left out")
        return
    write(step, scalars)
    say(f"step {step}  " + "  ".join(f"{name} {value:.4f}" for name, value in scalars.items()))


def initial_state(
    config: ml_collections.ConfigDict, mesh: Mesh, checkpoints: Checkpoints
) -> training.TrainState:
    """The newest checkpoint's state, on this mesh whatever mesh wrote it, or a new one.

    Raises:
      ValueError: a checkpoint that cannot be restored, or a config.start_from that does not fit.
    """
    step = checkpoints.latest()
    if step is None:
        given = starting_weights(config) if config.start_from else None
        state = training.sharded_init(config, mesh)
        return state if given is None else training.with_encoder(config, mesh, state, given)
    shapes = training.state_shapes(config)
    shardings = sharding.state_shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    state = checkpoints.restore(step, abstract)
    say(f"going on from step {step} of {config.steps}{moved(checkpoints.about_step(step))}")
    return state


def starting_weights(config: ml_collections.ConfigDict) -> dict:
    """The encoder's parameters in config.start_from, NumPy arrays; heads begin anew.

    Raises:
      ValueError: it is of another shape, or hears something else than this run gives it.
    """
    loaded = pretrained.load_encoder(config.start_from)
    there = {f"encoder.{k}": v for k, v in architecture(loaded.encoder).items()}
    here = architecture(make_encoder(config))
    here = {f"encoder.{name}": value for name, value in here.items()}
    there |= {"data.normalize": loaded.normalize, "data.sample_rate": loaded.sample_rate}
    here |= {"data.normalize": config.data.normalize, "data.sample_rate": config.data.sample_rate}
    other = [f"{name} ({there[name]} there, {here[name]} here)" for name in here]
    other = [x for x, name in zip(other, here, strict=True) if there[name] != here[name]]
    if other:
        raise ValueError(
            f"start_from {config.start_from} does not fit: {', '.join(other)}. Set these as they "
            "are there, or start from another encoder"
        )
    say(f"starting from the weights of {loaded.source}")
    return loaded.params


def moved(about: dict) -> str:
    """What differs between the machines that wrote a checkpoint and these, "" if nothing does."""
    here = {"processes": jax.process_count(), "devices": jax.device_count()}
    changed = [
        f"{about[name]} {name} then, {n} now" for name, n in here.items() if about[name] != n
    ]
    return f" ({'; '.join(changed)}: the same batches and masks)" if changed else ""


def summarise(metrics: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Means over the steps since the last log; updates that were not finite are counted."""
    ok = [m for m in metrics if not m["nonfinite"]] or metrics
    scalars = {name: float(np.mean([m[name] for m in ok])) for name in metrics[0]}
    scalars["learning_rate"] = float(metrics[-1]["learning_rate"])
    scalars["nonfinite"] = float(sum(m["nonfinite"] for m in metrics))
    return scalars


def guard(config: ml_collections.ConfigDict, method, scalars: dict[str, float], step: int) -> None:
    """Raises TrainingStopped for a non-finite interval or a collapsed representation."""
    bad = int(scalars["nonfinite"])
    if bad and config.nonfinite == "stop":
        begin = max(0, (step - 1) // config.log_every * config.log_every)
        raise TrainingStopped(
            f"{bad} losses or gradients between steps {begin} and {step} were not finite. None of "
            "those updates was applied. A lower optim.learning_rate or optim.clip_norm=1 usually "
            "helps; --config.nonfinite=skip goes on without such batches and counts them"
        )
    reason = method.collapse(config, scalars, step)
    if reason:
        raise TrainingStopped(f"at step {step} {reason}")


class Clock:
    """Speed since the last report, and the line that tells it."""

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh, first: int):
        self.config = config
        samples = audio.crop_samples(config.data.crop_frames)
        self.batch_seconds = config.batch_size * samples / config.data.sample_rate
        self.flops = flops.train_step(config)
        peak = flops.peak(mesh.devices.flat[0])
        self.peak = None if peak is None else peak * mesh.size
        self.began, self.step = time.monotonic(), first

    def compiled(self, result: jax.Array) -> None:
        """Leave the first step, which compiles, out of the speed."""
        jax.block_until_ready(result)
        say(f"first step after {time.monotonic() - self.began:.1f} s (compilation included)")
        self.began, self.step = time.monotonic(), self.step + 1

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave what happens in here out of the speed."""
        before = time.monotonic()
        yield
        self.began += time.monotonic() - before

    def report(self, step: int, scalars: dict[str, float]) -> None:
        """Print the progress line and add the speed to the scalars."""
        now, steps = time.monotonic(), step - self.step
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
