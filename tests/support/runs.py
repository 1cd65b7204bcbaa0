"""Runs of the main command, made tiny: their data, their flags, and processes that run them."""

import functools
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from musicssl.runtime.workdir import steps_on_disk
from tests.support import record_files

ROOT = Path(__file__).parents[2]
MUSIC2VEC, MUSICHUBERT = "configs/music2vec.py:demo", "configs/musichubert.py:demo"
MUSIC2VEC2 = "configs/music2vec2.py:demo"
MULTI = "configs/musichubert.py:demo_multi"
LEAVES = {
    "steps": 40,
    "batch_size": 8,
    "log_every": 5,
    "checkpoint.every": 5,
    "data.name": "clips",
    "data.crop_frames": 16,
    "encoder.layers": 1,
    "encoder.width": 32,
    "encoder.heads": 2,
    "encoder.ffn_width": 64,
    "encoder.stem_width": 16,
    "encoder.pos_conv_groups": 4,
    "encoder.pos_conv_kernel": 5,
    "mask.span": 4,
    "probe.at_end": False,
}
OF_CONFIG = {
    MUSIC2VEC: {"encoder.pos_conv_depth": 1, "data2vec.top_layers": 1, "mask.equal_counts": 4},
    MUSIC2VEC2: {
        "encoder.pos_conv_depth": 1,
        "data2vec.top_layers": 1,
        "mask.copies": 2,
        "decoder.layers": 2,
        "decoder.width": 16,
        "decoder.groups": 4,
    },
    MUSICHUBERT: {
        "mask.equal_counts": 4,
        "then": "",
        "hubert.final_dim": 16,
        "teacher.clusters": 8,
        "teacher.batches": 6,
        "teacher.sample": 500,
        "teacher.restarts": 2,
        "teacher.polish": 2,
        "teacher.passes": 6,
        "teacher.tolerance": 0.0,
    },
}
OF_CONFIG[MULTI] = OF_CONFIG[MUSICHUBERT] | {
    "teacher.targets": "mel:random:2x8,chroma:kmeans:8,onset:kmeans:6"
}


# A run that mixes two data sets and looks at their validation splits, as `write_mixed` writes them.
MIXED = {"data.mix": "clips:1,others:3", "validate.every": 3, "validate.clips": 8}


def write_mixed(data_dir: Path) -> None:
    """Two data sets of clips, "clips" and "others", with validation splits."""
    write_clips(data_dir, validation=8)
    write_clips(data_dir, name="others", validation=8, seed=1)


def write_clips(
    data_dir: Path, records: int = 40, name: str = "clips", validation: int = 0, seed: int = 0
) -> Path:
    """A data set of chords in noise, 0.8 to 2 s each, at DATA_DIR; returns its folder.

    Args:
      records: in the split "train", in two shards.
      validation: in a split of that name, where it is not 0.
    """
    rng = np.random.default_rng(seed)
    clips = []
    for _ in range(records + validation):
        time = np.arange(rng.integers(12_800, 32_000)) / 16_000
        pitches = rng.uniform(80, 2000, 3)
        chord = sum(np.sin(2 * np.pi * pitch * time) for pitch in pitches)
        sound = 5000 * chord * np.exp(-time * rng.uniform(0, 3)) + rng.normal(0, 300, len(time))
        clips.append(sound.astype(np.int16))
    splits = {"train": [clips[: records // 2], clips[records // 2 : records]]}
    splits |= {"validation": [clips[records:]]} if validation else {}
    return record_files.write(data_dir / name / "16khz/1.0.0", splits)


def flags(config: str, workdir: Path, data_dir: Path, leaves: dict | None = None) -> list[str]:
    """The main command's flags for a tiny run of a demo, `leaves` changed."""
    values = LEAVES | OF_CONFIG.get(config, {}) | {"data.data_dir": data_dir} | (leaves or {})
    overrides = [f"--config.{name}={value}" for name, value in values.items()]
    return [f"--config={config}", f"--workdir={workdir}", *overrides]


def start(arguments: Iterable[str], cache: Path) -> subprocess.Popen:
    """Start the main command as a user does; output and errors come through pipes.

    Args:
      cache: the folder that it keeps compiled programs in.
    """
    kept = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "musicssl.main", *arguments],
        cwd=ROOT,
        env=os.environ | kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def opened(path: Path) -> io.BytesIO:
    """What a file holds, of a disk or of a bucket."""
    return io.BytesIO(path.read_bytes())


def scalars(workdir: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def state(workdir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Every array of a run's newest checkpoint, or of one step's, `named`."""
    step = steps_on_disk(workdir)[-1] if step is None else step
    directory = epath.Path(workdir.absolute() / f"checkpoints/{step}/state")
    handler = ocp.PyTreeCheckpointHandler()
    saved = handler.metadata(directory).tree
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
    return named(handler.restore(directory, args=ocp.args.PyTreeRestore(restore_args=kinds)))


def named(tree: dict) -> dict[str, np.ndarray]:
    """The leaves of a tree by their path: "params/encoder/..."."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): np.asarray(leaf) for path, leaf in leaves}


def differences(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> list[str]:
    """The names of arrays that are not the same to the bit."""
    names = sorted(first.keys() | second.keys())
    assert len(names) > 10, "that is no state of a run"
    return [
        name
        for name in names
        if name not in first
        or name not in second
        or first[name].dtype != second[name].dtype
        or first[name].tobytes() != second[name].tobytes()
    ]
