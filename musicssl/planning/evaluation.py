"""Predicts what an evaluation costs: audio, operations, disk, memory and time of each task.

Counts are those of the published data sets, so that nothing has to be downloaded for a plan.
Operations are counted from the encoder's program, times on this machine follow from rates measured
on it (`planning.rates`), and times elsewhere are rooflines, the best that a data sheet allows.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from musicssl.features import windows
from musicssl.features.extract import FeatureSource, open_source
from musicssl.features.rows import SUM
from musicssl.planning import rates, topology
from musicssl.planning.schema import DeviceCost, EvaluationPlan, TaskCost
from musicssl.planning.topology import DataSheet
from musicssl.probing import evaluate, search, session
from musicssl.probing.task_kinds import kind_of
from musicssl.probing.tasks import FRAMES, SPLITS, Task
from musicssl.runtime import sharding

_FLOAT16, _FLOAT32 = 2, 4
_HIDDEN = {"mlp": 512, "linear": 0}
_STATE = 6  # an update reads and writes a probe's parameters and Adam's two moments


class Heard(NamedTuple):
    """The audio of a data set.

    records: of train, validation and test. seconds: the mean length of a record. varies: whether
    records differ in length.
    """

    records: tuple[int, ...]
    seconds: float
    varies: bool = False


# The builders of data_pipelines/ state these numbers, except two. MTG-Jamendo's tracks are those of
# any of the four subsets in split 0. VocalSet has 3,613 usable recordings of 10.1 hours; 20 % of
# them are for test, and 40 % of the rest for validation. Its technique task has at most as many
# recordings, with a quarter of the singers in the test split.
_VOCALSET = 10.1 * 3600 / 3613
_AUDIO = {
    "magnatagatune": Heard((18706, 1825, 5329), 29.1),
    "giantsteps_key": Heard((923, 236, 604), 120.0),
    "gtzan": Heard((443, 197, 290), 30.0),
    "emomusic": Heard((504, 115, 125), 45.0),
    "nsynth": Heard((289205, 12678, 4096), 4.0),
    "vocalset/technique_": Heard((1626, 1084, 903), _VOCALSET, True),
    "vocalset/singer_": Heard((1734, 1156, 723), _VOCALSET, True),
    "mtg_jamendo": Heard((32859, 11101, 11565), 244.5, True),
    "synth_music": Heard((240, 48, 192), 30.0),
    "synth_polyphony": Heard((576, 144, 288), 2.0),
}


def heard(task: Task, limit: int = 0) -> Heard:
    """Return the audio from which a task's features are extracted.

    Args:
      limit: how many records of each split are used; 0 for all.
    """
    name = f"{task.dataset}/{task.prefix}"
    audio = _AUDIO[name if name in _AUDIO else task.dataset]
    if not limit:
        return audio
    return audio._replace(records=tuple(min(limit, n) for n in audio.records))


def run(config: ml_collections.ConfigDict, specs: Sequence[str]) -> EvaluationPlan:
    """Measure this machine, and return what an evaluation takes here and elsewhere.

    Args:
      config: as in configs/probe.py.
      specs: TPUs and GPUs to plan for as well, as in --topology.

    Raises:
      ValueError, FileNotFoundError: the configuration, the encoder or a machine cannot be used.
    """
    if not isinstance(config.get("encoder"), str):
        raise ValueError("--evaluate plans an evaluation: give --config=configs/probe.py")
    if config.kind == search.RIDGE:
        raise ValueError(
            "--evaluate plans probes that are trained, but config.kind=ridge solves them in one "
            "pass over the features: give 'mlp' or 'linear'"
        )
    sheets = {spec: topology.data_sheet(spec) for spec in specs}
    session.check_encoders(config)
    mesh = sharding.make_mesh(config.mesh.fsdp)
    source = open_source(config.encoder, config.precision)
    if source.bind:
        raise ValueError(f"{config.encoder}: these features exist already: run the probes")
    chosen = session.check_probes(config, source.layers)
    return plan(
        source, chosen, config, sheets, rates.measure(source, chosen, config, mesh, forward)
    )


def plan(
    source: FeatureSource,
    chosen: Sequence[Task],
    config: ml_collections.ConfigDict,
    sheets: Mapping[str, DataSheet],
    measured: rates.Rates,
) -> EvaluationPlan:
    """Return the plan of evaluating an encoder on tasks.

    Args:
      config: of the probes, as in configs/probe.py.
      sheets: the data sheets of the machines to plan for, by the names that were given.
      measured: this machine's measured rates.
    """
    costs: list[TaskCost] = []
    first: dict[tuple, str] = {}
    for task in chosen:
        shares = first.setdefault(_pass(task), task.name)
        rows = *_pass(task), task.prefix, task.pool
        alike = [x for x in chosen if (*_pass(x), x.prefix, x.pool) == rows]
        stored = alike[0] is task  # tasks of the same rows share their file
        own = "" if shares == task.name else shares
        costs.append(_cost(source, task, config, sheets, measured, own, stored))
    return {
        "encoder": source.name,
        "layers": source.layers,
        "width": source.width,
        "parameters": sum(math.prod(np.shape(x)) for x in jax.tree.leaves(source.params)),
        "precision": config.precision,
        "machine": measured.machine,
        "extraction_rate": measured.seconds_of_audio,
        "tasks": costs,
    }


def _pass(task: Task) -> tuple:
    """Return what tasks have in common if one pass over the audio gives their features.

    VocalSet's two tasks have the same recordings, in other splits.
    """
    recordings = "" if task.dataset == "vocalset" else task.prefix
    return task.dataset, recordings, task.window, task.standardised_alone


def _cost(
    source: FeatureSource,
    task: Task,
    config: ml_collections.ConfigDict,
    sheets: Mapping[str, DataSheet],
    measured: rates.Rates,
    shares: str,
    stored: bool,
) -> TaskCost:
    """Return the plan of one task.

    Args:
      shares: the task whose pass over the same audio gives this one its features; "" for none.
      stored: whether the features on disk are counted for this task.
    """
    audio = heard(task, config.limit)
    cuts = [_cut(audio, number, task, source) for number in range(len(SPLITS))]
    lengths, counts = _lengths(cuts)
    hours = sum(float(cut.samples.sum()) for cut in cuts) / source.sample_rate / 3600
    grid = grid_work(source, task, config)

    # Extraction, if this task is the first with its audio.
    operations = [forward(source, n) for n in lengths]
    flops = None
    if None not in operations:
        flops = float(sum(c * f for c, f in zip(counts, operations, strict=True) if f is not None))
    seconds = sum(
        count * measured.window(n / source.sample_rate, f)
        for n, count, f in zip(lengths, counts, operations, strict=True)
    )
    cache = sum(int(windows.rows_in(cut, task.pool).sum()) for cut in cuts)
    bytes_each = source.layers * source.width * _FLOAT16

    # Elsewhere, at best.
    devices: dict[str, DeviceCost] = {}
    for spec, sheet in sheets.items():
        devices[spec] = {
            "extraction": None if shares else _roofline(source, cuts, flops, sheet, config),
            "grid": [grid.roofline(sheet, epochs) for epochs in grid.epochs],
        }
    return {
        "task": task.name,
        "title": task.title,
        "hours": hours,
        "windows": int(sum(counts)),
        "shares": shares,
        "flops": None if shares else flops,
        "cache_bytes": cache * bytes_each if stored else 0,
        "memory_bytes": grid.memory,
        "probes": grid.probes,
        "epochs": list(grid.epochs),
        "grid_flops": [grid.flops(epochs) for epochs in grid.epochs],
        "here": {
            "extraction": None if shares else seconds,
            "grid": [grid.here(measured, epochs) for epochs in grid.epochs],
        },
        "devices": devices,
    }


def _cut(audio: Heard, split: int, task: Task, source: FeatureSource) -> windows.Windows:
    """Cut a split's records; if lengths vary, spread them by a window around their mean."""
    count = audio.records[split]
    spread = task.window / 2 if audio.varies else 0
    seconds = np.linspace(audio.seconds - spread, audio.seconds + spread, count)
    rate = source.sample_rate
    lengths = (seconds * rate).astype(np.int64)
    return windows.cut(lengths, task.window, rate, task.standardised_alone, source.frames)


def _lengths(cuts: Sequence[windows.Windows]) -> tuple[list[int], list[int]]:
    """Return the lengths that windows are padded to, and how many windows have each."""
    padded = np.concatenate([windows.padded(cut) for cut in cuts])
    lengths, counts = np.unique(padded, return_counts=True)
    return lengths.tolist(), counts.tolist()


def forward(source: FeatureSource, samples: int) -> float | None:
    """Return the operations of one window's pass; None if JAX does not compute it.

    This is the compiler's own count for the program before optimisation. For a full-size encoder it
    is 1 % above `training.flops.forward`, which counts only products.
    """
    key = source.digest, samples
    if key not in _counted:
        _counted[key] = _count(source, samples)
    return _counted[key]


_counted: dict[tuple[str, int], float | None] = {}  # tracing a full-size encoder takes seconds


def _count(source: FeatureSource, samples: int) -> float | None:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), source.params)
    audio = jax.ShapeDtypeStruct((1, samples), jnp.float32)
    counted = jax.jit(source.apply).lower(shapes, audio).cost_analysis()
    return float(counted["flops"]) if counted and counted.get("flops") else None


def _roofline(
    source: FeatureSource,
    cuts: Sequence[windows.Windows],
    flops: float | None,
    sheet: DataSheet,
    config: ml_collections.ConfigDict,
) -> float | None:
    """Return the least seconds of extraction: its operations at the peak, or the bytes moved.

    Every batch reads the parameters, and every hidden state is written and read once.
    """
    if flops is None:
        return None
    parameters = sum(math.prod(np.shape(x)) for x in jax.tree.leaves(source.params))
    item = _FLOAT32 if config.precision == "float32" else _FLOAT16
    batches = sum(-(-len(cut.record) // (config.windows * sheet.devices)) for cut in cuts)
    frames = sum(int(windows.rows_in(cut, FRAMES).sum()) for cut in cuts)
    moved = batches * sheet.devices * parameters * _FLOAT32
    moved += 2 * frames * source.layers * source.width * item
    halved = sheet.half_in_float32 and config.precision == "float32"
    peak = sheet.peak / 2 if halved else sheet.peak
    return max(flops / peak, moved / sheet.bandwidth) / sheet.devices


@dataclasses.dataclass(frozen=True)
class GridWork:
    """The training data and models of a task's probes.

    train, validation: rows per epoch. updates: per epoch. clips: validation clips whose beats are
    decoded after each epoch of each probe. singles: sources of a single layer. mixed: layers of the
    weighted sum, 0 if it is not probed. models: per source. epochs: the fewest after which a probe
    may stop, and the most. memory: the most bytes held at once.
    """

    train: int
    validation: int
    updates: int
    clips: int
    singles: int
    mixed: int
    models: int
    width: int
    hidden: int
    outputs: int
    epochs: tuple[int, int]
    memory: int

    @property
    def probes(self) -> int:
        """Count the probes of the grid."""
        return (self.singles + bool(self.mixed)) * self.models

    @property
    def parameters(self) -> int:
        """Count a probe's weights, without biases."""
        if not self.hidden:
            return self.width * self.outputs
        return self.hidden * (self.width + self.outputs)

    def source_flops(self, epochs: int, mixed: int = 0) -> float:
        """Return the operations of all models of one source."""
        row = 2 * (self.parameters + mixed * self.width)
        return float(epochs * self.models * row * (3 * self.train + self.validation))

    def flops(self, epochs: int) -> float:
        """Return the operations of the whole grid."""
        total = self.singles * self.source_flops(epochs)
        return total + (self.source_flops(epochs, self.mixed) if self.mixed else 0)

    def here(self, measured: rates.Rates, epochs: int) -> float:
        """Return the seconds of the grid on this machine."""
        seconds = self.singles * self.source_flops(epochs) / measured.single
        if self.mixed:
            seconds += self.source_flops(epochs, self.mixed) / (measured.mixed or measured.single)
        return seconds + epochs * self.probes * self.clips * measured.decoding

    def roofline(self, sheet: DataSheet, epochs: int) -> float:
        """Return the least seconds on one device, if all models of a source advance together."""
        seconds = 0.0
        for mixed in [0] * self.singles + [self.mixed] * bool(self.mixed):
            state = self.updates * self.models * self.parameters * _FLOAT32 * _STATE
            read = (self.train + self.validation) * self.width * max(mixed, 1) * _FLOAT16
            moved = epochs * (state + read)
            seconds += max(self.source_flops(epochs, mixed) / sheet.peak, moved / sheet.bandwidth)
        return seconds


def grid_work(source: FeatureSource, task: Task, config: ml_collections.ConfigDict) -> GridWork:
    """Return the training data and models of a task's grid."""
    records = task.sizes or heard(task).records
    if config.limit:
        records = tuple(min(config.limit, n) for n in records)
    audio = heard(task)._replace(records=records)
    rows = [_rows(audio, number, task, source) for number in range(len(SPLITS))]
    kind = kind_of(task)

    # A training sample is a row, a record with all of its rows, or a crop of a record's rows.
    samples = records[0] if task.trained_whole or kind.crop_seconds else rows[0]
    train = rows[0]
    if kind.crop_seconds:
        fps = source.frame_rate
        train = records[0] * min(round(kind.crop_seconds * fps), rows[0] // records[0])
    sources = evaluate.chosen_sources(source.layers, config.layers, config.kind)
    mixed = source.layers - 1 if SUM in sources else 0
    models = len(config.learning_rates) * len(config.seeds)
    most = config.epochs or task.epochs

    # Memory holds a source's features, or parts of them if they are larger than config.memory_gib,
    # and the probes that advance together, each with its best epoch, two moments and gradients.
    hidden, outputs = _HIDDEN[config.kind], task.outputs or _OUTPUTS.get(task.label, 50)
    held = sum(rows) * source.width * _FLOAT16 * max(mixed, 1)
    weights = hidden * (source.width + outputs) if hidden else source.width * outputs
    memory = int(min(held, config.memory_gib * 2**30)) + models * weights * _FLOAT32 * 5
    return GridWork(
        train=train,
        validation=rows[1],
        updates=-(-samples // config.batch_size),
        clips=records[1] if kind.crop_seconds else 0,
        singles=len(sources) - bool(mixed),
        mixed=mixed,
        models=models,
        width=source.width,
        hidden=hidden,
        outputs=outputs,
        epochs=(min(task.patience + 1, most), most),
        memory=memory,
    )


_OUTPUTS = {  # of tasks whose classes come from the data set
    "genre": 10, "family": 11, "tags": 50, "instrument": 40, "moodtheme": 56, "top50": 50,
}  # fmt: skip


def _rows(audio: Heard, split: int, task: Task, source: FeatureSource) -> int:
    """Count a split's feature rows that take part in a task."""
    cut = _cut(audio, split, task, source)
    count = windows.rows_in(cut, task.pool)
    if not task.rests:  # a record that is shorter than a window keeps its only one
        count = count[(cut.samples == cut.size) | (cut.start == 0)]
    return int(count.sum())
