"""Pre-train an encoder: python -m musicssl.main --config=configs/music2vec.py:demo

Running the same command again goes on from the newest checkpoint, or says that the run is
complete. Exit codes: 0 complete, 2 a request that cannot be met, 3 training stopped (collapse, or
a loss that is not finite), 69 another process of the job was lost, 75 ended by SIGTERM after
saving.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from logging import getLogger
from pathlib import Path
from typing import NoReturn

import jax
import ml_collections
from absl import app, flags, logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import config_flags

from musicssl import audio, probe
from musicssl.objectives import codebook
from musicssl.runtime import checkpoint, compile_cache, distributed, goodput, sharding
from musicssl.runtime.workdir import claim, flat
from musicssl.training import loop

# before anything imports TensorFlow, which only reads data here: no chatter
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, :variant after it, e.g. configs/music2vec.py:demo"
)
WORKDIR = flags.DEFINE_string("workdir", None, "Default: runs/<config>-<variant>")

EXIT_REFUSED, EXIT_STOPPED = 2, 3


def parse(argv: list[str]) -> list[str]:
    """Read the flags; a wrong one is refused in one line."""
    try:
        rest = flags.FLAGS(argv)
        _ = CONFIG.value.name  # a file that is not there is told when it is used
        return rest
    except AttributeError as error:  # ml_collections' word for a leaf that is not there
        leaf = re.search(r"\w+", str(error)).group()
        spelt = (x.partition("=")[0] for x in argv if x.startswith("--config."))
        name = next((x for x in spelt if leaf in x.split(".")), leaf)
        near = re.search(r'Did you mean "\w+"', str(error))
        hint = f". {near.group()}?" if near else ": its values are listed in configs/"
        refuse(f"{name} is not in the configuration{hint}")
    except (flags.Error, OSError) as error:
        refuse(str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: "))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        refuse(f"unexpected arguments {argv[1:]}: options are spelt --name=value")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save
        for name in ("absl", "asyncio"):  # and pages of an error that it raises as well
            getLogger(name).setLevel("CRITICAL")
    config = CONFIG.value
    workdir = Path(WORKDIR.value or f"runs/{config.name}-{config.variant}")
    goodput.begin()
    try:
        with goodput.lost("start"):
            distributed.start()
            compile_cache.keep()
    except ValueError as error:
        refuse(error)
    with distributed.together():
        run(config, workdir)


def run(config: ml_collections.ConfigDict, workdir: Path) -> NoReturn:
    """Train, or go on, and exit."""
    try:
        with distributed.together(), goodput.lost("start"):
            preemption = loop.Preemption()
            mesh = sharding.make_mesh(config.mesh.fsdp)
            loop.check(config, mesh)
            claim(workdir, config)
            distributed.check_shared(workdir / "config.json")
            batches = Batches(config, mesh)
            if config.probe.every or config.probe.at_end:
                check_probes(config)
            checkpoints = checkpoint.Checkpoints(workdir, config, batches.counts())
            with goodput.lost("restore"):
                state = loop.initial_state(config, mesh, checkpoints)
            first = int(state.step)
            frozen = {}
            if config.method == "hubert":
                with goodput.lost("codebook"):
                    frozen = label_source(config, workdir, mesh, batches, preemption, first)
            writer = Writer(workdir, first)
    except (ValueError, OSError) as error:  # past this point only a bug raises ValueError
        refuse(error)

    def write(step: int, scalars: dict[str, float]) -> None:
        writer.write(step, scalars | batches.damage())

    def look(step: int, params: dict, poll: Callable[[], None]) -> dict[str, float]:
        return probe.quick(config, params["encoder"], mesh, step, poll)

    try:
        complete = loop.train(
            config, mesh, checkpoints, state, frozen, batches.open, write, look, preemption
        )
    except loop.TrainingStopped as error:
        print(f"musicssl: stopped: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_STOPPED)
    except OSError as error:
        refuse(error)
    if complete and config.then:
        go_on(config, workdir)
    if complete and config.probe.at_end and jax.process_index() == 0:
        compare(config, workdir)
    sys.exit(0 if complete else loop.EXIT_PREEMPTED)


def check_probes(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for probes of the run that could not be taken."""
    try:
        layers, rate = config.encoder.layers + 1, config.data.sample_rate
        probe.check_settings(probe.of_training(config), layers, rate)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{error} (for the run's own probes: --config.probe.every=0 "
            "--config.probe.at_end=False goes without them)"
        ) from error


def label_source(
    config: ml_collections.ConfigDict,
    workdir: Path,
    mesh: Mesh,
    batches: "Batches",
    preemption: loop.Preemption,
    first: int,
) -> dict:
    """The codebook, fitted if the workdir has none, and the encoder that it quantises.

    Args:
      first: the step that training begins at.
    """
    frozen, digest = codebook.frozen_encoder(config, mesh)
    numbers = itertools.count(first)

    def open_batches() -> Iterator[jax.Array]:
        for batch in batches.open(0):
            if preemption.reached(next(numbers)):  # each pass is on disk already
                sys.exit(loop.EXIT_PREEMPTED)
            yield batch

    codes = codebook.get(config, workdir, mesh, frozen, digest, open_batches, loop.say)
    return frozen | {"codebook": codes}


def go_on(config: ml_collections.ConfigDict, workdir: Path) -> NoReturn:
    """Become the run that takes this one as its teacher, beside this workdir."""
    run = f"{config.name}.py:{config.then}"
    loop.say(f"going on with {run}")
    command = [sys.executable, "-m", "musicssl.main", f"--config=configs/{run}"]
    command += [f"--config.teacher.encoder={workdir}", f"--workdir={workdir}-{config.then}"]
    same = {"data": config.data.to_dict(), "mesh": config.mesh.to_dict()}
    command += [f"--config.{name}={value}" for name, value in flat(same).items()]
    command += distributed.as_flags()
    become(command)


def compare(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Become the probe of this run beside random initial values and log-mel, if it is not done."""
    table = workdir / "probe/compare.md"
    if table.exists():
        loop.say(f"its probes are in {table.parent}")
        return
    settings = config.probe.to_dict()
    del settings["every"], settings["at_end"]
    settings["data_dir"] = settings["data_dir"] or config.data.data_dir
    settings |= {"encoder": workdir, "beside": "random,logmel", "cache": workdir / "features"}
    command = [sys.executable, "-m", "musicssl.probe", "--config=configs/probe.py"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    loop.say(f"probing it beside random initial values and log-mel: {table.parent}")
    become(command)


def become(command: list[str]) -> NoReturn:
    """Replace this process by another command."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()
    sys.stdout.flush()
    os.execv(sys.executable, command)


def refuse(reason: object) -> NoReturn:
    print(f"musicssl: {reason}", file=sys.stderr, flush=True)
    sys.exit(EXIT_REFUSED)


class Batches:
    """The host wing's global batches, placed on the mesh."""

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh):
        from data_pipelines import batches

        data = config.data
        self.samples = audio.crop_samples(data.crop_frames)
        if data.name.split("/")[0] == "synth_music" and not batches.is_built(
            data.name, data.data_dir
        ):
            compose(data.name, data.data_dir)
        self.config, self.mesh = config, mesh
        self.reading = None
        self.iterate = batches.iterate
        self.dataset = batches.open_dataset(data.name, data.data_dir, "train")
        if self.dataset.sample_rate != data.sample_rate:
            raise ValueError(
                f"data.sample_rate is {data.sample_rate} Hz and {self.dataset.directory} holds "
                f"{self.dataset.sample_rate} Hz: build that data set at the rate wanted"
            )
        batches.check_crop(self.dataset, self.samples)

    def open(self, first: int) -> Iterator[jax.Array]:
        """The batches from step `first` on: int16 [b, n]."""
        config = self.config
        rows = sharding.rows_here(self.mesh, config.batch_size)
        self.reading = self.iterate(
            self.dataset,
            seed=config.seed,
            batch_size=config.batch_size,
            samples=self.samples,
            start_step=first,
            rows=rows,
            on_damage=config.data.on_damage,
        )
        return (
            sharding.place_clips(self.mesh, config.batch_size, rows, batch["audio"])
            for batch in self.reading
        )

    def counts(self) -> dict[str, int]:
        """What the order of batches depends on; samples of damaged records cannot be told."""
        found = {"records": len(self.dataset)}
        if self.config.data.on_damage == "stop":
            found["samples"] = int(self.dataset.samples.sum())
        return found

    def damage(self) -> dict[str, int]:
        """The damaged records that this process has met since it started, where they may be."""
        if self.config.data.on_damage == "stop" or self.reading is None:
            return {}
        return {"damaged_records": len(self.reading.damaged)}


def compose(name: str, data_dir: str) -> None:
    """Build the synthetic data set, which needs no download, on its first use."""
    if jax.process_index() == 0:
        loop.say(f"{name} is not in {data_dir} yet: composing it")
        command = [sys.executable, "-m", "data_pipelines.build", name, f"--data_dir={data_dir}"]
        if subprocess.run(command, check=False).returncode:
            raise ValueError(f"{name} was not built: see above, or build it with {command[1:]}")
    multihost_utils.sync_global_devices("data set built")


class Writer:
    """Scalars to TensorBoard and to metrics.jsonl, from the first process."""

    def __init__(self, workdir: Path, first: int):
        self.path = workdir / "metrics.jsonl"
        self.writer = None
        if jax.process_index():
            return
        from clu import metric_writers

        self.writer = metric_writers.SummaryWriter(str(workdir))
        if self.path.exists():  # lines past the restored step will be written again
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [x for x in lines if x.endswith("}\n") and json.loads(x)["step"] <= first]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(kept))
            temporary.rename(self.path)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        if self.writer is None:
            return
        self.writer.write_scalars(step, scalars)
        self.writer.flush()
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
