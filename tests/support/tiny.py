"""The smallest run that trains, and what it takes to test it on eight devices."""

import json
import re
from collections.abc import Callable

import ml_collections
import numpy as np

from configs import music2vec, music2vec2
from musicssl import audio
from tests.support import commands

LEAVES = {
    "batch_size": 16,
    "data.crop_frames": 37,  # no other size of the model: an axis of 37 is time
    "encoder.layers": 1,
    "encoder.width": 48,
    "encoder.ffn_width": 96,
    "encoder.stem_width": 32,
    "encoder.pos_conv_depth": 2,
    "encoder.pos_conv_groups": 4,
    "mask.equal_counts": 4,
    "data2vec.top_layers": 1,
    "data2vec.ema_start": 0.5,  # a teacher that moves as far as rounding lets one see
    "data2vec.ema_end": 0.9,
    "data2vec.ema_steps": 4,
}
NO_DROPOUT = {
    "encoder.dropout": 0.0,
    "encoder.attention_dropout": 0.0,
    "encoder.layerdrop": 0.0,
}
EXCHANGE = re.compile(r"= (\(?\w+\[.*?) (?:all-gather|all-to-all|collective-permute)(?:-start)?\(")


def config(leaves: dict | None = None) -> ml_collections.ConfigDict:
    """The demo shrunk further, then `leaves`, spelt as on the command line."""
    tiny = music2vec.get_config("demo")
    tiny.update_from_flattened_dict(LEAVES | (leaves or {}))
    return tiny


def copies_config(leaves: dict | None = None) -> ml_collections.ConfigDict:
    """The same of data2vec 2.0."""
    tiny = music2vec2.get_config("demo")
    own = {"mask.copies": 2, "decoder.layers": 2, "decoder.width": 16, "decoder.groups": 4}
    shared = {name: x for name, x in LEAVES.items() if not name.startswith("mask.")}
    tiny.update_from_flattened_dict(shared | own | (leaves or {}))
    return tiny


def clips(tiny: ml_collections.ConfigDict, seed: int = 0) -> np.ndarray:
    """A batch of loud noise, int16 [b, n]."""
    shape = tiny.batch_size, audio.crop_samples(tiny.data.crop_frames)
    return np.random.default_rng(seed).integers(-20_000, 20_000, shape, dtype=np.int16)


def on_eight_devices(function: Callable[..., object], *arguments: str) -> object:
    """Call a function in a process of its own and return its result, by JSON."""
    process = commands.Process(report, function, *arguments, devices=8)
    output, errors = process.communicate()
    assert process.returncode == 0, errors[-4000:]
    return json.loads(output.rpartition("RESULT")[2])


def report(function: Callable[..., object], *arguments: str) -> None:
    print("RESULT", json.dumps(function(*arguments)), flush=True)


def moved(program: str) -> list[list[int]]:
    """Shapes of all results of gathers, permutations and exchanges in a compiled program."""
    results = " ".join(EXCHANGE.findall(program))
    return [[int(n) for n in dims.split(",") if n] for dims in re.findall(r"\[([\d,]*)\]", results)]
