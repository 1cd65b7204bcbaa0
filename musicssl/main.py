"""Pre-train an encoder: python -m musicssl.main --config=configs/music2vec.py:demo

Running the same command again resumes from the newest checkpoint, or says that the run is complete.
Exit codes: 0 complete, 2 a request that cannot be met, 3 training stopped (collapse, or a loss that
is not finite), 69 another process of the job was lost, 74 a disk or a bucket did not answer for
minutes, 75 ended after saving, because of SIGTERM, Ctrl-C or a hang-up.
"""

import contextlib
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from logging import getLogger
from pathlib import Path
from typing import NoReturn

import jax
import ml_collections
from absl import flags
from jax.sharding import Mesh

from musicssl import command, environment, host, paths
from musicssl.command import say
from musicssl.exchange import pretrained
from musicssl.host import Batches
from musicssl.objectives import codebook
from musicssl.probing import session
from musicssl.runtime import checkpoint, compile_cache, distributed, goodput, sharding
from musicssl.runtime.preemption import Preemption
from musicssl.runtime.workdir import claim, flat, require_writable, steps_on_disk
from musicssl.training import curves, loop
from musicssl.training.writer import Writer


def define_flags() -> None:
    command.define_config()
    command.define_path("workdir", "the run's folder; the default is runs/<config>-<variant>")


def main(argv: list[str]) -> None:
    del argv
    f = flags.FLAGS
    if not f["verbosity"].present:
        for name in ("absl", "asyncio"):  # Orbax logs pages about errors that it also raises
            getLogger(name).setLevel("CRITICAL")
        sys.unraisablehook = tell_but_late_writes
    workdir = host.path(f.workdir or f"runs/{f.config.name}-{f.config.variant}")
    goodput.begin()
    with command.refusing(), goodput.lost("start"):
        distributed.start()
        compile_cache.keep()
        environment.require_devices()
    with distributed.together():
        run(f.config, workdir)


def tell_but_late_writes(unraisable: "sys.UnraisableHookArgs") -> None:
    """Print an error that no caller can catch, except those from the arrays of a failed save.

    Orbax raises the error of the first array, and no longer waits for the others.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def run(config: ml_collections.ConfigDict, workdir: Path) -> NoReturn:
    """Train or resume, and exit."""
    with contextlib.ExitStack() as held:
        complete, config = train(config, workdir, held)
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):  # a complete run may be kept on a read-only disk
                curves.draw(workdir)
    if complete and config.then:
        exec_next_run(config, workdir)
    if complete:
        say(next_steps(workdir))
    if complete and config.probe.at_end and jax.process_index() == 0:
        exec_final_probe(config, workdir)
    sys.exit(0 if complete else command.EXIT_PREEMPTED)


def next_steps(workdir: Path) -> str:
    """Return what can be done with a complete run, a line for each command."""
    where = shlex.quote(str(workdir))
    return "\n".join(
        [
            f"to look at its curves:   tensorboard --logdir={where}",
            f"to evaluate its encoder: python -m musicssl.probe --config.encoder={where}",
            f"to use it in PyTorch:    python -m musicssl.export --workdir={where} --output=DIR",
        ]
    )


def train(
    config: ml_collections.ConfigDict, workdir: Path, held: contextlib.ExitStack
) -> tuple[bool, ml_collections.ConfigDict]:
    """Train or resume; return whether the run is complete, and the configuration of its probes.

    Args:
      held: keeps the claim on the workdir until it is closed.
    """
    # Inside this block a ValueError is a request that cannot be met; after it, it is a bug.
    with command.refusing(), distributed.together(), goodput.lost("start"):
        mesh = sharding.make_mesh(config.mesh.fsdp)
        loop.check(config, mesh)
        held.enter_context(host.claimed(workdir, "wait until it ends, or use another --workdir"))
        preemption = Preemption()  # a signal before this ends the process: there is nothing to save
        distributed.check_shared(workdir)
        claim(workdir, config)
        if config.start_from and not steps_on_disk(workdir):
            pretrained.require(config.start_from)
        teacher = None
        if config.method == "hubert":  # report what it lacks before data are composed
            teacher = codebook.frozen_encoder(config, mesh)
        batches = Batches(config, mesh)
        config = with_possible_probes(config)
        checkpoints = checkpoint.Checkpoints(workdir, config, batches.counts())
        with goodput.lost("restore"):
            state = loop.initial_state(config, mesh, checkpoints)
        first = int(state.step)
        if first < config.steps:
            require_writable(workdir)
            goodput.keep(workdir, first)
        frozen = {}
        if teacher is not None:
            with goodput.lost("codebook"):
                frozen = load_or_fit_codebook(
                    config, workdir, mesh, teacher, batches, preemption, first
                )
        writer = Writer(workdir, config, first)
        held.callback(writer.close)

    def on_scalars(step: int, scalars: dict[str, float]) -> None:
        writer.write(step, scalars | batches.damage())

    def take_probe(step: int, params: dict, poll: Callable[[], None]) -> dict[str, float]:
        return session.quick(config, params["encoder"], mesh, step, poll)

    training_run = loop.Run(
        config=config,
        mesh=mesh,
        checkpoints=checkpoints,
        frozen=frozen,
        preemption=preemption,
        open_batches=batches.open,
        on_scalars=on_scalars,
        take_probe=take_probe,
        open_validation=batches.open_validation,
    )
    try:
        complete = loop.train(training_run, state)
    except loop.TrainingStopped as error:
        command.refuse(f"stopped: {error}", command.EXIT_STOPPED)
    except OSError as error:
        command.refuse(error)
    return complete, config


def with_possible_probes(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return the configuration, without its probes if their data cannot be composed.

    Raises:
      ValueError: the probes that were asked for could not be taken.
    """
    if not (config.probe.every or config.probe.at_end):
        return config
    try:
        layers, rate = config.encoder.layers + 1, config.data.sample_rate
        session.check_settings(session.of_training(config), layers, rate, "config.probe")
        return config
    except host.NotComposed as error:
        say(f"this run goes on without its probes: {error}")
        without = config.copy_and_resolve_references()
        without.probe.every, without.probe.at_end = 0, False
        return without
    except (ValueError, OSError) as error:
        if command.storage_errno(error):
            raise
        raise ValueError(
            f"{error} (needed for the run's probes; --config.probe.every=0 "
            "--config.probe.at_end=False turns them off)"
        ) from error


def load_or_fit_codebook(
    config: ml_collections.ConfigDict,
    workdir: Path,
    mesh: Mesh,
    teacher: tuple[dict, str],
    batches: Batches,
    preemption: Preemption,
    first: int,
) -> dict:
    """Return the frozen parts of the teacher: the codebooks, and the encoder of a layer.

    The codebooks are fitted if the workdir has none. Exits with 75 if the job is preempted.

    Args:
      teacher: what `codebook.frozen_encoder` returned.
      first: the step that training begins at.
    """
    frozen, digest = teacher
    numbers = itertools.count(first)

    def open_batches() -> Iterator[jax.Array]:
        for batch in batches.open(0):
            goodput.record(first)
            if preemption.reached(next(numbers)):  # k-means saves after every pass
                sys.exit(command.EXIT_PREEMPTED)
            yield batch

    quantizers = codebook.get(config, workdir, mesh, frozen, digest, open_batches, say)
    return frozen | {"quantizers": quantizers}


def exec_next_run(config: ml_collections.ConfigDict, workdir: Path) -> NoReturn:
    """Replace this process with the run that has this one as its teacher, in a sibling workdir."""
    configs = paths.of_product(f"configs/{config.name}.py")
    say(f"continuing with {configs}:{config.then}")
    argv = [sys.executable, "-m", "musicssl.main", f"--config={configs}:{config.then}"]
    argv += [f"--config.teacher.encoder={workdir}", f"--workdir={workdir}-{config.then}"]
    same = {"data": config.data.to_dict(), "mesh": config.mesh.to_dict()}
    same["probe"] = {"data_dir": config.probe.data_dir}
    argv += [f"--config.{name}={value}" for name, value in flat(same).items()]
    argv += distributed.as_flags()
    exec_command(argv)


def exec_final_probe(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Replace this process with the probe of this run and its baselines, unless that is done."""
    table = workdir / "probe/compare.md"
    if table.exists():
        say(f"the probes of this run are in {table.parent}")
        return
    settings = config.probe.to_dict()
    del settings["every"], settings["at_end"]
    settings["data_dir"] = session.of_training(config).data_dir
    settings |= {"encoder": workdir, "beside": "random,logmel"}
    if not paths.is_remote(workdir):  # on a bucket, the features stay in the probe's own cache
        settings["cache"] = workdir / "features"
    argv = [sys.executable, "-m", "musicssl.probe"]
    argv.append(f"--config={paths.of_product('configs/probe.py')}")
    argv += [f"--config.{name}={value}" for name, value in settings.items()]
    argv.append("--processes=1")
    say(f"probing this run, random initial values and log-mel: {table.parent}")
    exec_command(argv)


def exec_command(argv: list[str]) -> NoReturn:
    """Replace this process with another command."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()
    sys.stdout.flush()
    os.execv(sys.executable, argv)


if __name__ == "__main__":
    command.run(main, define_flags, required=["config"])
