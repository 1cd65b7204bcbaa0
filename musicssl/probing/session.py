"""One evaluation from an encoder's name to its tables: features, probes, results, comparisons."""

import contextlib
import functools
import itertools
import json
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from musicssl import host, paths
from musicssl.command import note
from musicssl.features import extract, windows
from musicssl.features.baselines import BASELINES
from musicssl.features.extract import FeatureSource, hidden_states
from musicssl.model.encoder import make_encoder
from musicssl.probing import evaluate, labels, published, report, search, tasks
from musicssl.probing.schema import About, TaskResult, TrainedBy
from musicssl.probing.task_kinds import kind_of
from musicssl.runtime import sharding
from musicssl.runtime.workdir import flat, git_commit, step_of, steps_on_disk

# How far the chance level of the labels built may be from that of the published ones. R2 may differ
# more: a test set of 125 has a mean of its own, which alone accounts for about .01.
_CHANCE_TOLERANCE, _R2_TOLERANCE = 0.005, 0.05
_note_once = functools.cache(note)
_LEAST_RATE = 4  # frames a second for decoding beats: the fastest tempo has 3.6 beats a second


class Session(NamedTuple):
    """What the tasks of one encoder share.

    poll: called between pieces of work; what it raises ends the session.
    also: what is asked of the features beside the probes, of evaluate.ALSO.
    deform: what is done to the audio of further test splits, such as "noise:20".
    """

    source: FeatureSource
    config: ml_collections.ConfigDict
    mesh: Mesh
    poll: Callable[[], None]
    also: Sequence[str] = ()
    deform: Sequence[str] = ()


def run(config: ml_collections.ConfigDict) -> str:
    """Evaluate config.encoder, and the encoders beside it, on config.tasks; return the tables.

    Results of other tasks that a directory holds already are kept.

    Raises:
      ValueError, FileNotFoundError: an encoder, a data set or a setting cannot be used.
    """
    check_encoders(config)
    if unknown := [name for name in _listed(config.also) if name not in evaluate.ALSO]:
        raise ValueError(f"config.also: there is no {unknown[0]!r}: use some of {[*evaluate.ALSO]}")
    with _naming("config.deform"):
        for deformation in _listed(config.deform):
            host.check_deformation(deformation)
    with _naming("config.tasks"):
        chosen = tasks.choose(config.tasks)
    out = _results_dir(config)
    with host.claimed(out, "wait for its end, or use another --config.results", writes=True):
        return _run_into(out, chosen, config)


def _run_into(out: Path, chosen: Sequence[tasks.Task], config: ml_collections.ConfigDict) -> str:
    """Evaluate config.encoder, and the encoders beside it; write to `out`, return the tables."""
    # Each encoder that is evaluated for comparison has a directory of its own.
    folders = {config.encoder: out}
    for name in filter(None, config.beside.split(",")):
        spec = f"{paths.RANDOM}{config.encoder}" if name == "random" else name
        folders.setdefault(spec, out / "beside" / _folder_name(name))

    # All are opened before the first is evaluated, so that no work is lost to a wrong name.
    # Each leaves memory when its turn is over.
    opened = [_open(spec, chosen, folder, config) for spec, folder in folders.items()]
    tables = [
        _run_encoder(spec, chosen, folder, config, *opened.pop(0))
        for spec, folder in folders.items()
    ]
    table = tables[0]
    if len(folders) > 1 and table:  # only process 0 has a table
        table = report.compare([*folders.values()], out)
    note(f"results, tables and pictures are in {out}")
    return table


def _open(
    spec: str, chosen: Sequence[tasks.Task], out: Path, config: ml_collections.ConfigDict
) -> tuple[FeatureSource, TrainedBy | None]:
    """Open an encoder that `extract.open_source` takes, and check that it can be evaluated.

    Returns:
      The source of features, and the run that it is from.
    """
    step = None  # the last; config.step is for config.encoder alone
    if spec == config.encoder and config.step:
        step = step_of(host.path(spec), config.step)
    source = extract.open_source(spec, config.precision, step)
    run = _trained_by(spec, step)
    check_settings(config, source.layers, source.sample_rate)
    _check_frames(chosen, source, config)
    report.refuse_others(out, source.digest, source.name)
    if _listed(config.deform) and source.bind:
        raise ValueError(
            "config.deform: features that were computed elsewhere cannot be computed again from "
            "deformed audio: leave it out"
        )
    return source, run


def _run_encoder(
    spec: str,
    chosen: Sequence[tasks.Task],
    out: Path,
    config: ml_collections.ConfigDict,
    source: FeatureSource,
    run: TrainedBy | None,
) -> str:
    """Evaluate an opened encoder; write to `out`, return a table."""
    mesh = sharding.make_mesh(config.mesh.fsdp)
    also, deform = _listed(config.also), _listed(config.deform)
    session = Session(source, config, mesh, lambda: None, also, deform)
    for number, task in enumerate(chosen, 1):
        note(f"{source.name}: {task.name} ({number} of {len(chosen)}): {task.title}")
        result = run_task(task, chosen, session)
        if result is not None:
            warn_of_chance(task, result["chance"], config.limit)
            report.save(out, result, _about(spec, config, source, run))
    return "" if jax.process_index() else report.write(out)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def check_encoders(config: ml_collections.ConfigDict) -> None:
    """Check the names of all encoders before the first is evaluated.

    Raises:
      ValueError: no encoder is named, or a name is unknown.
    """
    if not config.encoder:
        raise ValueError(
            "config.encoder is empty: give a directory, random:DIRECTORY, hf:ORG/NAME, "
            "python:FILE.py:NAME, features:DIRECTORY, logmel or cqt"
        )
    if config.precision not in ("float32", "bfloat16"):
        raise ValueError(f"config.precision is {config.precision!r}: use 'float32' or 'bfloat16'")
    for name in filter(None, config.beside.split(",")):
        kind, path = paths.split_kind(name)
        known = name in ("random", *BASELINES) or kind == paths.PYTHON or path.startswith(paths.HUB)
        if not known and not host.path(path).exists():
            raise ValueError(
                f"config.beside: {name!r} is neither a path nor one of random, "
                f"{', '.join(BASELINES)}; encoders have the forms that config.encoder takes"
            )


def check_settings(
    settings: ml_collections.ConfigDict, layers: int, sample_rate: int, section: str = "config"
) -> None:
    """Check what is to be probed, by a command or a training run, before any work is done.

    Args:
      layers, sample_rate: of the encoder.
      section: the prefix of the settings' leaves on the command line, for messages.

    Raises:
      ValueError: a setting cannot be used.
      FileNotFoundError: a data set is not built.
    """
    chosen = check_probes(settings, layers, section)
    needed = dict.fromkeys(task.dataset for task in chosen)
    for name in sorted(needed, key=host.SYNTHESISED.__contains__):  # what is composed comes last
        host.require_labelled(name, settings.data_dir, sample_rate)


def check_probes(
    settings: ml_collections.ConfigDict, layers: int, section: str = "config"
) -> list[tasks.Task]:
    """Return the tasks that are to be probed; check all settings, and no data set.

    Arguments and errors are those of `check_settings`.
    """
    if settings.kind not in ("mlp", "linear", search.RIDGE):
        raise ValueError(f"{section}.kind is {settings.kind!r}: use 'mlp', 'linear' or 'ridge'")
    for name in ("learning_rates", "seeds", "penalties"):
        if not len(settings[name]):
            raise ValueError(f"{section}.{name} is empty: it must have a value")
    if not all(0 < penalty < np.inf for penalty in settings.penalties):
        raise ValueError(f"{section}.penalties is {settings.penalties}: use numbers above 0")
    for name, least in (("batch_size", 1), ("windows", 1), ("epochs", 0), ("limit", 0)):
        if settings[name] < least:
            raise ValueError(f"{section}.{name} is {settings[name]}: use {least} or more")
    with _naming(f"{section}.layers"):
        evaluate.chosen_sources(layers, settings.layers, settings.kind)
    with _naming(f"{section}.tasks"):
        chosen = tasks.choose(settings.tasks)
    return chosen


def _check_frames(
    chosen: Sequence[tasks.Task], source: FeatureSource, config: ml_collections.ConfigDict
) -> None:
    """Check that tasks can be asked of an encoder's frames, and of features computed elsewhere.

    Raises:
      ValueError, FileNotFoundError: they cannot.
    """
    for task in chosen:
        if task.pool == tasks.FRAMES and source.frame_rate < _LEAST_RATE:
            raise ValueError(
                f"{task.name} has a row for every frame and needs {_LEAST_RATE} or more a second, "
                f"but {source.name} has {source.frame_rate:.2f}: leave the task out"
            )
        for split in tasks.SPLITS:
            if source.bind is None:
                continue
            name, rate = task.split(split), source.sample_rate
            data = host.open_labelled(task.dataset, config.data_dir, name, rate, config.limit)
            source.bind(task.dataset, name, data)


@contextlib.contextmanager
def _naming(leaf: str) -> Iterator[None]:
    """Put the name of the leaf that is checked in front of an error's message."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{leaf} is not possible: {error}") from None


def _results_dir(config: ml_collections.ConfigDict) -> Path:
    """Return config.results, or <workdir>/probe of a run, or results/<encoder>."""
    if config.results:
        return host.path(config.results)
    if (host.path(config.encoder) / "checkpoints").is_dir():
        return host.path(config.encoder) / "probe"
    return Path("results") / _folder_name(config.encoder)


def _folder_name(spec: str) -> str:
    return paths.short(spec).replace(":", "-")


def _about(
    spec: str, config: ml_collections.ConfigDict, source: FeatureSource, run: TrainedBy | None
) -> About:
    """Return what a results.json says about its run."""
    return {
        "encoder": spec,
        "features": source.name,
        "digest": source.digest,
        "origin": dict(source.origin),
        "config": json.loads(config.to_json()),
        "run": run,
        "command": shlex.join(["python", "-m", "musicssl.probe", *sys.argv[1:]]),
        "commit": git_commit(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "machine": platform.processor() or platform.machine(),
    }


def _trained_by(spec: str, step: int | None) -> TrainedBy | None:
    """Return the run whose workdir an encoder is read from, None for any other encoder."""
    steps = steps_on_disk(host.path(spec))
    if not steps:
        return None
    step = steps[-1] if step is None else step
    saved = host.path(spec) / "checkpoints" / str(step) / "about" / "metadata"
    return {"config": flat(json.loads(saved.read_text())["config"]), "step": step}


def run_task(
    task: tasks.Task, together: Sequence[tasks.Task], session: Session
) -> TaskResult | None:
    """Return the result of one task.

    Of several processes, all take part in the extraction of features; the first alone trains
    probes, and the others return None.

    Args:
      together: the tasks that are evaluated one after another. Features of the same audio that
        other tasks need are extracted in the same pass. If other tasks have splits of their own,
        windows that two splits share are heard once.
    """
    sharing = [other for other in together if _heard_by(other) == _heard_by(task)]
    pools = {other.pool for other in sharing if other.prefix == task.prefix}
    otherwise_split = [other for other in sharing if other.prefix != task.prefix]
    splits: dict[str, evaluate.Prepared] = {}
    classes: Sequence[str] = ()
    for name in tasks.SPLITS:
        prepared, classes = prepare(task, name, pools, session, elsewhere=otherwise_split)
        if prepared is not None:
            splits[name] = prepared
    deformed: dict[str, evaluate.Prepared] = {}
    for deformation in session.deform:
        prepared, _ = prepare(task, "test", pools, session, deformation)
        if prepared is not None:
            deformed[deformation] = prepared
    if jax.process_index():
        return None
    rate, config = session.source.frame_rate, session.config
    return evaluate.evaluate(
        task, splits, classes, rate, config, session.poll, session.also, deformed
    )


def _heard_by(task: tasks.Task) -> tuple:
    """Return what two tasks must share to have their features from the same windows."""
    return task.dataset, task.window, task.standardised_alone


def prepare(
    task: tasks.Task,
    split: str,
    pools: set[int],
    session: Session,
    deformation: str = "",
    elsewhere: Sequence[tasks.Task] = (),
) -> tuple[evaluate.Prepared | None, Sequence[str]]:
    """Return the features and labels of a split, and the names of the classes.

    Of several processes the first alone has the features; the others return None for them.

    Args:
      pools: of other tasks' rows, in ticks, which are extracted in the same pass.
      deformation: of the audio, "" for none.
      elsewhere: tasks that have the same windows in splits of their own. What was extracted for
        them is taken from the cache.
    """
    source, config = session.source, session.config
    rate = source.sample_rate
    data = host.open_labelled(task.dataset, config.data_dir, task.split(split), rate, config.limit)
    if data.dataset.sample_rate != rate:
        _note_once(f"{data.version} is {_resampled(task.dataset, data.dataset.sample_rate, rate)}")
    _warn_of_sizes(task, split, data.sizes, config.limit)
    records = host.deformed(data, deformation) if deformation else data

    # Extract this task's rows and the others', or read them from the cache.
    cut = _cut(task, records.lengths, source)

    def read(record: int) -> np.ndarray:
        session.poll()
        return records.read(record)

    own = task.pool
    if source.bind:
        source = source._replace(hear=source.bind(task.dataset, task.split(split), data))
    features = extract.extract(
        source, cut, read, sorted(pools | {own}), Path(config.cache), records.digest, session.mesh,
        config.windows, lambda: _heard_before(task, elsewhere, cut, data.sums, session),
    )  # fmt: skip

    # Label the rows.
    rows = windows.rows(cut, own, rate)
    row_labels = kind_of(task).label(task, records.labels, rows, source.frame_rate)
    classes = _class_names(task, data.classes)
    if own not in features:
        return None, classes
    return evaluate.Prepared(features[own], rows, row_labels), classes


def _heard_before(
    task: tasks.Task,
    elsewhere: Sequence[tasks.Task],
    cut: windows.Windows,
    sums: np.ndarray,
    session: Session,
) -> list[extract.Heard]:
    """Return the windows of other tasks' splits, and which of a task's windows sound alike."""
    source, config = session.source, session.config
    if source.bind:  # it says itself what each split has
        return []
    heard = []
    prefixes = dict.fromkeys(other.prefix for other in elsewhere)
    for prefix, split in itertools.product(prefixes, tasks.SPLITS):
        data = host.open_labelled(
            task.dataset, config.data_dir, prefix + split, source.sample_rate, config.limit, False
        )
        others = _cut(task, data.lengths, source)
        alike = windows.alike(cut, sums, others, data.sums)
        if (alike >= 0).any():
            heard.append(extract.Heard(others, data.digest, alike))
    return heard


def _cut(task: tasks.Task, lengths: np.ndarray, source: FeatureSource) -> windows.Windows:
    alone, frames = task.standardised_alone, source.frames
    return windows.cut(lengths, task.window, source.sample_rate, alone, frames)


def _resampled(dataset: str, kept: int, wanted: int) -> str:
    """Say what an encoder hears of records that are kept at another rate than it takes."""
    said = f"resampled from {kept} to {wanted} Hz"
    if wanted < kept:
        return said
    built = f"{dataset}/{wanted // 1000}khz" if wanted % 1000 == 0 else "a build of that rate"
    return f"{said}, with nothing above {kept // 2} Hz; {built}, if there is one, has more"


def _class_names(task: tasks.Task, classes: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """Return the names of a task's classes, by the labels' definition or by the data set."""
    if task.label in labels.CLASS_NAMES:
        return labels.CLASS_NAMES[task.label]
    if task.label == "instruments":
        return classes.get("notes/instrument", ())
    return classes.get(task.label, ())[: task.outputs or None]


def _warn_of_sizes(
    task: tasks.Task, split: str, sizes: Mapping[str, Mapping[str, int | None]], limit: int
) -> None:
    """Warn if a split does not have the published number of records, unless there is a limit."""
    if limit:
        return
    for name in {split, task.split(split), f"{task.label}/{split}"} & set(sizes):
        built, wanted = sizes[name]["built"], sizes[name]["published"]
        if wanted not in (None, built):
            note(f"{task.dataset} {name} has {built} items, but {wanted} are published")


def warn_of_chance(task: tasks.Task, chance: Mapping[str, float], limit: int) -> None:
    """Warn if labels are not distributed as the published ones: other files, or other splits.

    Args:
      chance: every score of the best answer that ignores the audio, on the labels built.
    """
    known = published.chance(task.name)
    if limit or known is None:
        return
    score, level = known
    tolerance = _R2_TOLERANCE if score == "r2" else _CHANCE_TOLERANCE
    if abs(chance[score] - level) > tolerance:
        note(
            f"{task.name}: without the audio {score} is {chance[score]:.4f}, but {level:.4f} on "
            "the published labels: scores cannot be compared with published ones"
        )


def of_training(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return the section `probe` of a training run, with the data_dir of its tasks' data sets.

    If the section has none, it gets the run's. If the run's has none of these data sets, and they
    can be composed, it gets the default one: a folder of the user's own music is left alone.
    """
    settings = ml_collections.ConfigDict(dict(**config.probe))
    if not settings.data_dir:
        with _naming("config.probe.tasks"):
            needed = {task.dataset for task in tasks.choose(settings.tasks)}
        built = any(host.is_built(name, config.data.data_dir) for name in needed)
        elsewhere = needed <= {*host.SYNTHESISED} and not built
        settings.data_dir = host.DATA_DIR if elsewhere else config.data.data_dir
    return settings


def quick(
    config: ml_collections.ConfigDict,
    params: dict,
    mesh: Mesh,
    step: int,
    poll: Callable[[], None],
) -> dict[str, float]:
    """Return scores of an encoder as it is at a step of training: {"probe/<task>": test score}.

    Features are not kept.

    Args:
      config: of the training run; its section `probe` says what is probed.
      params: of the encoder, on the mesh.
      poll: called between pieces of work; what it raises ends the probe.
    """
    # The encoder in training is a source of features like any other.
    encoder = make_encoder(config)
    source = FeatureSource(
        f"step {step}", f"step-{step}", encoder.layers + 1, encoder.width, config.data.sample_rate,
        config.data.normalize, params, functools.partial(hidden_states, encoder),
    )  # fmt: skip

    # Evaluate the tasks with a temporary cache.
    settings = of_training(config)
    chosen = tasks.choose(settings.tasks)
    scores = {}
    with tempfile.TemporaryDirectory() as settings.cache:
        session = Session(source, settings, mesh, poll)
        for task in chosen:
            result = run_task(task, chosen, session)
            if result is not None:
                scores[f"probe/{task.name}"] = result["chosen"]["test"][result["score"]]["mean"]
    return {name: float(np.float32(value)) for name, value in scores.items()}
