"""One evaluation from an encoder's name to its tables: features, probes, results, comparisons."""

import contextlib
import json
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from musicssl import host
from musicssl.command import note
from musicssl.features import extract, windows
from musicssl.features.baselines import BASELINES
from musicssl.model.encoder import make_encoder
from musicssl.probing import evaluate, labels, report, tasks
from musicssl.runtime import sharding
from musicssl.runtime.workdir import git_commit

# Between chance levels of the published labels and of those built. R2 has another, since a test set
# of 125 has a mean of its own: about .01 for that alone.
CHANCE_TOLERANCE, R2_TOLERANCE = 0.005, 0.05


class Session(NamedTuple):
    """What the tasks of one encoder share; `poll` is called between pieces of work, to raise."""

    source: extract.Source
    config: ml_collections.ConfigDict
    mesh: Mesh
    poll: Callable[[], None]


def run(config: ml_collections.ConfigDict) -> str:
    """Evaluates config.encoder, and those beside it, on config.tasks; returns the tables.

    Tasks that a directory has results of are kept beside the new ones.

    Raises:
      ValueError, FileNotFoundError: an encoder, a data set or a setting cannot be used.
    """
    check(config)
    with _naming("config.tasks"):
        chosen = tasks.choose(config.tasks)
    out = results_dir(config)
    table = run_encoder(config.encoder, chosen, out, config)
    beside = [name for name in config.beside.split(",") if name]
    folders = [out]
    for name in beside:
        spec = f"random:{config.encoder}" if name == "random" else name
        folders.append(out / "beside" / Path(name).name)
        run_encoder(spec, chosen, folders[-1], config)
    return report.compare(folders, out) if beside and table else table


def run_encoder(
    spec: str, chosen: Sequence[tasks.Task], out: Path, config: ml_collections.ConfigDict
) -> str:
    """Evaluates an encoder that `extract.open_source` takes; writes to `out`, returns a table."""
    mesh = sharding.make_mesh(config.mesh.fsdp)
    source = extract.open_source(spec, config.precision)
    check_settings(config, source.layers, source.sample_rate)
    session = Session(source, config, mesh, lambda: None)
    for number, task in enumerate(chosen, 1):
        note(f"{source.name}: {task.name} ({number} of {len(chosen)}): {task.title}")
        result = run_task(task, chosen, session)
        if result:
            warn_of_chance(task, result["chance"], config.limit)
            report.save(out, result, about(spec, config, source))
    return "" if jax.process_index() else report.write(out)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for encoders that cannot be, before the first is evaluated."""
    if not config.encoder:
        raise ValueError(
            "config.encoder is empty: give a directory, random:DIRECTORY, logmel or cqt"
        )
    if config.precision not in ("float32", "bfloat16"):
        raise ValueError(f"config.precision is {config.precision!r}: use 'float32' or 'bfloat16'")
    for name in filter(None, config.beside.split(",")):
        known = name in ("random", *BASELINES)
        if not known and not Path(name.removeprefix("random:")).exists():
            raise ValueError(
                f"config.beside: {name!r} is no path, nor one of random, {', '.join(BASELINES)}"
            )


def check_settings(
    settings: ml_collections.ConfigDict, layers: int, sample_rate: int, section: str = "config"
) -> None:
    """Look at what is to be probed, of a command or a training run, before any work.

    Args:
      layers, sample_rate: of the encoder.
      section: what the settings' leaves follow on the command line, for messages.

    Raises:
      ValueError: settings that cannot be. FileNotFoundError: a data set that is not built.
    """
    if settings.kind not in ("mlp", "linear"):
        raise ValueError(f"{section}.kind is {settings.kind!r}: use 'mlp' or 'linear'")
    for name in ("learning_rates", "seeds"):
        if not len(settings[name]):
            raise ValueError(f"{section}.{name} is empty: it must have a value")
    for name, least in (("batch_size", 1), ("windows", 1), ("epochs", 0), ("limit", 0)):
        if settings[name] < least:
            raise ValueError(f"{section}.{name} is {settings[name]}: use {least} or more")
    with _naming(f"{section}.layers"):
        evaluate.sources(layers, settings.layers)
    with _naming(f"{section}.tasks"):
        chosen = tasks.choose(settings.tasks)
    for name in dict.fromkeys(task.dataset for task in chosen):
        host.require_labelled(name, settings.data_dir, sample_rate)


@contextlib.contextmanager
def _naming(leaf: str) -> Iterator[None]:
    """Put the leaf whose value is looked at before what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{leaf} is not possible: {error}") from None


def results_dir(config: ml_collections.ConfigDict) -> Path:
    """config.results, or <workdir>/probe of a run, or results/<encoder>."""
    if config.results:
        return Path(config.results)
    if (Path(config.encoder) / "checkpoints").is_dir():
        return Path(config.encoder) / "probe"
    kind, colon, path = config.encoder.rpartition(":")
    return Path("results") / f"{kind}{'-' * len(colon)}{Path(path).name}"


def about(spec: str, config: ml_collections.ConfigDict, source: extract.Source) -> dict:
    """What a results.json says of its run."""
    return {
        "encoder": spec,
        "features": source.name,
        "digest": source.digest,
        "config": json.loads(config.to_json()),
        "command": shlex.join(["python", "-m", "musicssl.probe", *sys.argv[1:]]),
        "commit": git_commit(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "machine": platform.processor() or platform.machine(),
    }


def run_task(task: tasks.Task, together: Sequence[tasks.Task], session: Session) -> dict:
    """The result of one task; features that `together` need of the same audio come along.

    Of several processes, all take part in the extraction; the first alone trains probes, and has a
    result.
    """
    pools = {pool(t, session.source) for t in together if _audio_of(t) == _audio_of(task)}
    splits, classes = {}, ()
    for name in tasks.SPLITS:
        splits[name], classes = prepare(task, name, pools, session)
    if jax.process_index():
        return {}
    rate, config = session.source.frame_rate, session.config
    return evaluate.evaluate(task, splits, classes, rate, config, session.poll)


def pool(task: tasks.Task, source: extract.Source) -> int:
    """Frames of the source in a row of the task, which counts in frames of 20 ms."""
    if task.pool in (tasks.WHOLE, tasks.FRAMES):
        return task.pool
    return round(task.pool * source.frame_rate / 50)


def _audio_of(task: tasks.Task) -> tuple:
    return task.dataset, task.prefix, task.window


def prepare(
    task: tasks.Task, split: str, pools: set[int], session: Session
) -> tuple[evaluate.Prepared, Sequence[str]]:
    """Features and labels of a split, and the names of the classes."""
    source, config = session.source, session.config
    rate = source.sample_rate
    data = host.open_labelled(task.dataset, config.data_dir, task.split(split), rate, config.limit)
    if data.dataset.sample_rate != rate:
        note(f"{data.version} is resampled from {data.dataset.sample_rate} to {rate} Hz")
    warn_of_sizes(task, split, data.sizes, config.limit)
    cut = windows.cut(data.lengths, task.window, rate)

    def read(record: int) -> np.ndarray:
        session.poll()
        return data.read(record)

    own = pool(task, source)
    features = extract.extract(
        source, cut, read, sorted(pools | {own}), Path(config.cache), data.digest, session.mesh,
        config.windows,
    )  # fmt: skip
    rows = windows.rows(cut, own, rate)
    found = labels.labels(task, data.labels, rows, source.frame_rate)
    return evaluate.Prepared(features.get(own), rows, found), class_names(task, data.classes)


def class_names(task: tasks.Task, classes: dict[str, Sequence[str]]) -> Sequence[str]:
    """Names of a task's classes, as the data set or the labels' definition tells them."""
    if task.label in labels.NAMES:
        return labels.NAMES[task.label]
    if task.label == "instruments":
        return classes.get("notes/instrument", ())
    return classes.get(task.label, ())[: task.outputs or None]


def warn_of_sizes(task: tasks.Task, split: str, sizes: dict, limit: int) -> None:
    """Says where a data set is not of the published size, or not whole."""
    if limit:
        return
    wanted = {split, task.split(split), f"{task.label}/{split}"}
    for name in wanted & set(sizes):
        built, published = sizes[name]["built"], sizes[name]["published"]
        if published not in (None, built):
            note(f"{task.dataset} {name} has {built} items, published are {published}")


def warn_of_chance(task: tasks.Task, found: dict[str, float], limit: int) -> None:
    """Says where labels are not distributed as the published ones: other files, or other splits."""
    if limit or task.chance is None:
        return
    score, published = task.chance
    tolerance = R2_TOLERANCE if score == "r2" else CHANCE_TOLERANCE
    if abs(found[score] - published) > tolerance:
        note(
            f"{task.name}: without the audio {score} is {found[score]:.4f}, from the published "
            f"labels {published:.4f}: scores cannot be compared with published ones"
        )


def of_training(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The section `probe` of a training run, whose data it takes unless it names others."""
    settings = ml_collections.ConfigDict(dict(**config.probe))
    settings.data_dir = settings.data_dir or config.data.data_dir
    return settings


def quick(
    config: ml_collections.ConfigDict,
    params: dict,
    mesh: Mesh,
    step: int,
    poll: Callable[[], None],
) -> dict[str, float]:
    """Scores of an encoder as it is at a step of training: {"probe/<task>": test score}.

    Args:
      config: of the training run; its section `probe` says what is probed. Features are kept
        nowhere.
      params: of the encoder, on the mesh.
      poll: called between pieces of work; what it raises ends the probe.
    """
    encoder = make_encoder(config)
    source = extract.Source(
        f"step {step}", f"step-{step}", encoder.layers + 1, encoder.width,
        config.data.sample_rate, config.data.normalize, params,
        lambda p, x: encoder.apply({"params": p}, x).hidden,
    )  # fmt: skip
    settings = of_training(config)
    chosen = tasks.choose(settings.tasks)
    scores = {}
    with tempfile.TemporaryDirectory() as settings.cache:
        session = Session(source, settings, mesh, poll)
        for task in chosen:
            if not (result := run_task(task, chosen, session)):
                continue
            scores[f"probe/{task.name}"] = result["chosen"]["test"][result["score"]]["mean"]
    return {name: float(np.float32(value)) for name, value in scores.items()}
