"""Host memory that the probes of each of the 13 tasks need, features cached, at their real shape.

    python -m tests.benchmarks.probe_memory [--tasks=gtzan_beat,mtg_genre] [--cores=4]

Nothing is trained: the grid's program is compiled for the published sizes, for a single layer and
for the weighted sum of twelve, and the compiler says what it needs beside the features. These are
float16, held in memory up to config.memory_gib and else read from disk as they are trained.
"""

import argparse
import os

import jax
import numpy as np

from configs import probe as probe_config
from musicssl.features import windows
from musicssl.features.rows import SUM, Stored
from musicssl.probing import grid, labels, search, tasks
from musicssl.probing.grid import Protocol, Split
from musicssl.probing.task_kinds import kind_of

LAYERS, WIDTH, FPS = 12, 768, 50
LIMIT = 24.0
TRACKS = {"gtzan_beat": (443, 197, 290)}
WINDOWS = {  # of 30 s in MTG-Jamendo, 30 and 15 s in EmoMusic, 3 s in VocalSet (10.1 h, 2 : 1 : 1)
    "giantsteps_key": (3687, 942, 2406),
    "gtzan_beat": tuple(1499 * n for n in TRACKS["gtzan_beat"]),
    "emomusic": (2 * 504, 2 * 115, 2 * 125),
    "vocalset_technique": (6060, 3030, 3030),
    "vocalset_singer": (6060, 3030, 3030),
    "mtg_instrument": (118_886, 42_993, 45_136),
    "mtg_moodtheme": (77_984, 28_504, 33_292),
    "mtg_genre": (280_744, 90_840, 102_305),
    "mtg_top50": (277_081, 89_485, 101_372),
}
OUTPUTS = {"magnatagatune": 50, "gtzan_genre": 10, "nsynth_instrument": 11, "mtg_instrument": 40}
OUTPUTS |= {"mtg_moodtheme": 56, "mtg_genre": 87, "mtg_top50": 50}


def shaped(task: tasks.Task, number: int, mixed: int, held: bool) -> Split:
    """Split `number` of a task without its values."""
    rows = WINDOWS.get(task.name, task.sizes)[number]
    kind = kind_of(task)
    items = rows if kind.crop_seconds or not task.by_item else task.sizes[number]
    outputs = task.outputs or OUTPUTS[task.name]
    label = ((), np.int32) if kind.loss == "ce" else ((outputs,), np.float32)
    row = np.broadcast_to(np.float16(0), (rows, WIDTH))  # takes no memory
    x = Stored((row,) * mixed, np.arange(rows))
    samples = task.sizes[number] if kind.crop_seconds or task.trained_whole else 0
    return Split(
        jax.ShapeDtypeStruct(x.shape, np.float16) if held else x,
        jax.ShapeDtypeStruct((rows, *label[0]), label[1]),
        jax.ShapeDtypeStruct((rows,), np.int32),
        jax.ShapeDtypeStruct((items, *label[0]), label[1]),
        jax.ShapeDtypeStruct((samples,), np.int32),
    )


def monitor_of(task: tasks.Task) -> grid.Monitor:
    """What scores a validation split, which for beats depends on its clips and references."""
    clips = task.sizes[1] if kind_of(task).crop_seconds else 0
    number = np.arange(WINDOWS[task.name][1] if clips else 0)
    record, frame = np.divmod(number, 1499)
    y = np.zeros((len(number), 1), np.float32)
    references = [np.arange(0.3, 30, 0.4)] * clips
    of_split = labels.Labels(number, y, number, y, np.arange(clips) * 1499, references)
    rows = windows.Rows(record, frame / FPS, (frame + 1) / FPS)
    return kind_of(task).monitor(of_split, rows, FPS)


def needed(name: str, source: str, cores: int) -> tuple[float, float]:
    """(GiB of features at most, GiB that the programs need beside them) to probe a source."""
    task, config = tasks.TASKS[name], probe_config.get_config()
    mixed = LAYERS if source == SUM else 1
    rows = WINDOWS.get(name, task.sizes)
    features = sum(rows) * mixed * WIDTH * 2 / 2**30
    held = features <= config.memory_gib
    train, validation = (shaped(task, number, mixed, held) for number in (0, 1))
    kind = kind_of(task)
    protocol = Protocol(
        kind.loss,
        task.outputs or OUTPUTS[name],
        batch=config.batch_size,
        crop=kind.crop_seconds * FPS,
    )
    rates = np.array(config.learning_rates, np.float32)
    groups = search.groups(train, rates, np.array(config.seeds))
    program = grid.fit.lower(protocol, monitor_of(task), train, validation, *groups[0]).compile()
    memory = program.memory_analysis()
    at_once = search.at_once(groups, cores)
    each = memory.temp_size_in_bytes + memory.output_size_in_bytes
    if not held:  # a batch as it is read, twice: gathered, and given to the program
        each += 2 * config.batch_size * max(2, protocol.crop) * mixed * WIDTH * 2
    placed = max(rows) / sum(rows)  # a split is there twice while it is given to JAX
    return held * features * (1 + placed), at_once * each / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="mir")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    most = 0.0
    for task in tasks.choose(arguments.tasks):
        for source in ("6", SUM):
            features, programs = needed(task.name, source, arguments.cores)
            most = max(most, features + programs)
            print(f"{task.name:20} {source:>4}  features {features:5.2f}  "
                  f"programs {programs:5.2f} GiB", flush=True)  # fmt: skip
    print(f"at most {most:.1f} GiB with {arguments.cores} cores, allowed {LIMIT:g}; "
          "Python and its libraries are another 1 GiB")  # fmt: skip


if __name__ == "__main__":
    main()
