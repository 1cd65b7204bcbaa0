"""Runs of the loop in this process, on fabricated batches."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import musichubert
from musicssl.runtime import checkpoint, sharding
from musicssl.runtime.preemption import Preemption
from musicssl.runtime.workdir import claim
from musicssl.training import loop
from tests.support import tiny

STEPS = 14
LEAVES = {
    "steps": STEPS,
    "log_every": 4,
    "checkpoint.every": 3,
    "checkpoint.keep": 2,
    "checkpoint.keep_every": 6,
    "batch_size": 4,
    "encoder.layers": 1,
    "encoder.width": 32,
    "encoder.heads": 2,
    "encoder.ffn_width": 64,
    "encoder.stem_width": 16,
    "encoder.pos_conv_depth": 1,
    "encoder.pos_conv_groups": 4,
    "encoder.pos_conv_kernel": 5,
    "mask.equal_counts": 2,
    "data2vec.top_layers": 1,
    "data2vec.ema_steps": 10,
}


def config(leaves: dict | None = None) -> ml_collections.ConfigDict:
    return tiny.config(LEAVES | (leaves or {}))


def copies_config() -> ml_collections.ConfigDict:
    """The same of data2vec 2.0."""
    return tiny.copies_config({k: v for k, v in LEAVES.items() if k != "mask.equal_counts"})


def clips(tiny_config: ml_collections.ConfigDict, step: int) -> np.ndarray:
    """The batch of a step: int16 [b, n]."""
    return tiny.clips(tiny_config, seed=step)


class Session:
    """One process's part of a run, as main puts it together."""

    def __init__(self, tiny_config: ml_collections.ConfigDict, workdir: Path):
        self.config, self.workdir = tiny_config, workdir
        self.mesh = sharding.make_mesh(devices=jax.devices()[:1])
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.frozen: dict = {}
        self.preemption: Preemption | None = None

    def batch(self, step: int) -> np.ndarray:
        return clips(self.config, step)

    def open(self, first: int) -> Iterator[jax.Array]:
        rows = sharding.rows_here(self.mesh, self.config.batch_size)
        for step in itertools.count(first):
            batch = self.batch(step)
            with jax.transfer_guard("allow"):  # of a run's transfers this alone is meant
                placed = sharding.place_clips(self.mesh, self.config.batch_size, rows, batch)
            yield placed

    def open_validation(self) -> Iterator[jax.Array]:
        rows = sharding.rows_here(self.mesh, self.config.batch_size)
        for step in itertools.count(1000):
            with jax.transfer_guard("allow"):
                yield sharding.place_clips(
                    self.mesh, self.config.batch_size, rows, clips(self.config, step)
                )

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self.rows.append((step, scalars))

    def look(self, step: int, params: dict, poll: Callable[[], None]) -> dict[str, float]:
        """A probe that sees the parameters: they are of this step, and not yet donated."""
        leaves = jax.tree.leaves(jax.device_get(params))
        return {"probe/norm": float(np.sqrt(sum(np.vdot(x, x) for x in leaves)))}

    def run(self) -> bool:
        loop.check(self.config, self.mesh)
        claim(self.workdir, self.config)
        saved = checkpoint.Checkpoints(self.workdir, self.config)
        state = loop.initial_state(self.config, self.mesh, saved)
        ask = self.preemption or Preemption()
        run = loop.Run(
            config=self.config,
            mesh=self.mesh,
            checkpoints=saved,
            frozen=self.frozen,
            preemption=ask,
            open_batches=self.open,
            on_scalars=self.write,
            take_probe=self.look,
            open_validation=self.open_validation,
        )
        return loop.train(run, state)

    def logged(self, name: str) -> list[tuple[int, float]]:
        return [(step, scalars[name]) for step, scalars in self.rows]


def with_codebook(tmp_path: Path, codebook: np.ndarray | None = None) -> Session:
    """A session of musicHuBERT with six codes."""
    leaves = {k: v for k, v in LEAVES.items() if not k.startswith(("data2vec", "encoder.pos"))}
    leaves |= {"steps": 6, "data.crop_frames": 37, "hubert.final_dim": 8, "teacher.clusters": 6}
    leaves |= {
        "hubert.min_label_perplexity": 1.01,
        "encoder.pos_conv_kernel": 16,
        "encoder.pos_conv_groups": 4,
    }
    tiny_config = musichubert.get_config("demo")
    tiny_config.update_from_flattened_dict(leaves)
    session = Session(tiny_config, tmp_path)
    if codebook is None:
        codebook = np.random.default_rng(0).normal(0, 1e-3, (6, 39))
    quantizer = {"codebook": jnp.asarray(codebook, jnp.float32)}
    session.frozen = {"quantizers": {"mfcc": quantizer}}
    return session
