"""The training step compiled for machines that need not be there, up to the largest batch."""

import math
import re
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh
from tqdm import tqdm

from musicssl import audio
from musicssl.model.encoder import make_encoder
from musicssl.objectives import hubert
from musicssl.planning import report, topology
from musicssl.planning.topology import Topology
from musicssl.runtime import sharding
from musicssl.training import step

AUTO = re.compile(r"auto(:(?P<first>[1-9]\d*))?")
FIRST = 8  # clips that --batch=auto asks for at first
FULL = "RESOURCE_EXHAUSTED"  # how every compiler begins its refusal for want of memory


class Attempt(NamedTuple):
    """A batch put to the compiler. wanted: bytes on one device, None where it does not tell.

    compiled: None where it was refused.
    """

    clips: int
    wanted: int | None
    compiled: jax.stages.Compiled | None


def check_batch(batch: str, specs: list[str]) -> None:
    """Raises ValueError for a --batch that is no number of clips, or cannot be searched for."""
    if AUTO.fullmatch(batch):
        others = [spec for spec in specs if spec.startswith(("cpu", "here"))]
        if others:
            raise ValueError(
                f"--batch={batch} with --topology={others[0]}: only a TPU's compiler refuses a "
                "batch that does not fit, give --batch=N"
            )
    elif batch and (not batch.isdigit() or not int(batch)):
        raise ValueError(f"--batch={batch}: give a number of clips on each device, auto or auto:N")


def plan(config: ml_collections.ConfigDict, place: Topology, batch: str) -> dict:
    """What is to be known of a configuration on a topology, as plain values for the report.

    Raises:
      ValueError: the batch or the mesh does not fit the devices.
    """
    began = time.monotonic()
    mesh = sharding.make_mesh(config.mesh.fsdp, place.devices)
    limit = topology.memory_limit(place.devices[0])
    each = mesh.size * config.accumulate
    if not batch and config.batch_size % each:
        raise ValueError(
            f"batch_size is {config.batch_size}, which {mesh.size} devices times accumulate="
            f"{config.accumulate} do not divide: give --batch=N, clips on each device"
        )

    def attempt(clips: int) -> Attempt:
        tqdm.write(f"{place.spec}: compiling {clips} clips a device", file=sys.stderr)
        found = compile_step(with_batch(config, clips * mesh.size), mesh)
        verdict = "accepted" if found.compiled else "refused"
        taken = f"{report.size(found.wanted)} of {report.size(limit)}"
        tqdm.write(f"{place.spec}: {clips} clips {verdict}, {taken}", file=sys.stderr)
        return found

    if searched := AUTO.fullmatch(batch):
        unit = config.accumulate
        first = max(1, int(searched["first"] or FIRST) // unit)
        attempts = largest_batch(attempt, unit, limit, fixed_bytes(config, mesh), first)
    else:
        attempts = [attempt(int(batch) if batch else config.batch_size // mesh.size)]
    fitting = [x for x in attempts if x.compiled is not None]
    chosen = max(fitting, key=lambda x: x.clips) if fitting else attempts[-1]
    facts = report.facts(
        with_batch(config, chosen.clips * mesh.size), place, mesh, limit, chosen.compiled
    )
    facts["memory"]["wanted"] = chosen.wanted
    facts["attempts"] = [
        {"clips": x.clips, "bytes": x.wanted, "fits": x.compiled is not None} for x in attempts
    ]
    facts["compile_seconds"] = round(time.monotonic() - began, 1)
    return facts


def with_batch(config: ml_collections.ConfigDict, clips: int) -> ml_collections.ConfigDict:
    """The configuration with `clips` in its global batch, and equal masks in groups that fit."""
    config = config.copy_and_resolve_references().unlock()
    config.batch_size = clips
    if config.mask.equal_counts:
        config.mask.equal_counts = math.gcd(config.mask.equal_counts, clips)
    return config.lock()


def compile_step(config: ml_collections.ConfigDict, mesh: Mesh) -> Attempt:
    """The real step for that mesh, compiled, or refused for want of memory."""
    clips = config.batch_size // mesh.size
    try:
        compiled = lower(config, mesh).compile()
    except jax.errors.JaxRuntimeError as error:
        if FULL not in str(error):
            raise
        return Attempt(clips, topology.refused_bytes(str(error))[0], None)
    return Attempt(clips, report.wanted_bytes(compiled.memory_analysis()), compiled)


def lower(config: ml_collections.ConfigDict, mesh: Mesh) -> jax.stages.Lowered:
    """The step of `musicssl.training.step` on shapes alone."""
    samples = audio.crop_samples(config.data.crop_frames)
    with jax.set_mesh(mesh):
        state = step.state_shapes(config)
        clips = jax.ShapeDtypeStruct((config.batch_size, samples), jnp.int16)
        return step.make_step(config, mesh).lower(state, frozen(config), clips)


def frozen(config: ml_collections.ConfigDict) -> dict:
    """Shapes of the teacher's fixed part; a frozen encoder is taken to be like the student."""
    if config.method != "hubert":
        return {}
    t = config.teacher
    if t.feature in audio.SPECTRAL:
        width = audio.spectral_width(t.feature, t.ceps)
        return {"codebook": jax.ShapeDtypeStruct((t.clusters, width), jnp.float32)}
    params = step.state_shapes(config).params["encoder"]
    encoder = make_encoder(config)
    return {
        "encoder": hubert.FrozenEncoder(params, encoder, t.layer, config.data.normalize),
        "codebook": jax.ShapeDtypeStruct((t.clusters, config.encoder.width), jnp.float32),
    }


def fixed_bytes(config: ml_collections.ConfigDict, mesh: Mesh) -> int:
    """About the bytes of one device that do not grow with the clips: the state, and gradients."""
    shapes = step.state_shapes(config)
    held = report.memory(shapes, mesh, None, None)
    return 2 * held["parameters"] + held["teacher"] + held["optimizer"]


def largest_batch(
    attempt: Callable[[int], Attempt], unit: int, limit: int, fixed: int, first: int = FIRST
) -> list[Attempt]:
    """Attempts, of which the largest accepted and the smallest refused are `unit` clips apart.

    Bytes grow with the clips nearly in proportion, from `fixed` ones, so the next guess is where
    the last two reach the limit; where that has not halved what is open, it is the middle. A
    compiler may stay below the limit for long, as it recomputes more and more: once two guesses of
    where the limit is were accepted, and a step of one, each step up is twice the one before. Where
    nothing fits, the smallest refused is `unit`.
    """
    tried: list[Attempt] = []
    accepted, refused, guess, surpassed = 0, None, first, 0
    while refused is None or refused - accepted > 1:
        result = attempt(unit * guess)
        tried.append(result)
        before = accepted, refused
        accepted, refused = (guess, refused) if result.compiled else (accepted, guess)
        guess = predicted(tried, unit, limit, fixed)
        if refused is None:
            near = guess is not None and guess <= 4 * accepted
            guess = max(accepted + 1, min(guess or 2 * accepted, 4 * accepted))
            if surpassed > 2 or (surpassed > 1 and accepted - before[0] > 1):
                guess = max(guess, accepted + 2 * (accepted - before[0]))
            surpassed += near
        else:
            open_before = math.inf if before[1] is None else before[1] - before[0]
            if guess is None or refused - accepted > open_before / 2:
                guess = (accepted + refused) // 2
            guess = min(max(accepted + 1, guess), refused - 1)
    return tried


def predicted(tried: list[Attempt], unit: int, limit: int, fixed: int) -> int | None:
    """Units at which the point nearest to the limit and a next one say that it is reached.

    That one is an eighth of the clips away: bytes grow in steps, and two neighbours may be equal.
    """
    points = {(x.clips // unit, x.wanted) for x in tried if x.wanted} | {(0, fixed)}
    (units, wanted), *rest = sorted(points, key=lambda x: abs(x[1] - limit))
    others = [x for x in rest if abs(x[0] - units) * 8 >= units and x[1] != wanted]
    if not others:
        return None
    other, less = others[0]
    return int(units + (limit - wanted) * (units - other) / (wanted - less))
