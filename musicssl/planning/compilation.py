"""Compiles the training step for machines that need not be present, up to the largest batch."""

import math
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh
from tqdm import tqdm

from musicssl import audio
from musicssl.model.encoder import make_encoder
from musicssl.objectives import hubert, targets
from musicssl.planning import costs, report, topology
from musicssl.planning.gpus import Gpu
from musicssl.planning.schema import Plan, Tried
from musicssl.planning.topology import Topology
from musicssl.runtime import sharding
from musicssl.training import step

_AUTO = re.compile(r"auto(:(?P<first>[1-9]\d*))?")
_FIRST = 8  # the clips with which --batch=auto begins
_FULL = "RESOURCE_EXHAUSTED"  # how every compiler begins its refusal for lack of memory
# XLA chooses its own matrix kernels by timing them, which takes a GPU. Without one, the libraries'
# products are used instead; for some shapes XLA finds no kernel of its own at all.
_WITHOUT_A_GPU: dict[str, str | bool] = {"xla_gpu_enable_triton_gemm": False}


class BatchAttempt(NamedTuple):
    """A batch that the compiler was given.

    clips: on each device. wanted: bytes on one device, None if a refusal does not say.
    compiled: the step, None if it was refused.
    """

    clips: int
    wanted: int | None
    compiled: jax.stages.Compiled | None


def check_batch(batch: str, specs: list[str]) -> None:
    """Refuse a --batch that is not a number of clips, or that cannot be searched for.

    Args:
      specs: the topologies to plan for.

    Raises:
      ValueError: naming the remedy.
    """
    if _AUTO.fullmatch(batch):
        others = [spec for spec in specs if spec.startswith(("cpu", "here"))]
        if others:
            raise ValueError(
                f"--batch={batch} with --topology={others[0]}: its amount of memory is not known, "
                "so give --batch=N"
            )
    elif batch and (not batch.isdigit() or not int(batch)):
        raise ValueError(f"--batch={batch}: give a number of clips per device, auto or auto:N")


def plan(config: ml_collections.ConfigDict, place: Topology, batch: str) -> Plan:
    """Compile a configuration's step for a topology, and return its plan.

    Args:
      batch: a number of clips per device, "auto" or "auto:N" for the most that fit, or "" for the
        configuration's own batch.

    Raises:
      ValueError: the batch or the mesh does not fit the devices.
    """
    began = time.monotonic()
    mesh = sharding.make_mesh(config.mesh.fsdp, place.devices)
    limit = topology.memory_limit(place)
    if not batch and config.batch_size % (mesh.size * config.accumulate):
        raise ValueError(
            f"batch_size is {config.batch_size}, not a multiple of {mesh.size} devices times "
            f"accumulate={config.accumulate}: give --batch=N, the clips per device"
        )

    def attempt(clips: int) -> BatchAttempt:
        tqdm.write(f"{place.spec}: compiling {clips} clips per device", file=sys.stderr)
        result = _compile_step(with_batch(config, clips * mesh.size), mesh, place, limit)
        verdict = "accepted" if result.compiled else "refused"
        taken = f"{report.size(result.wanted)} of {report.size(limit)}"
        tqdm.write(f"{place.spec}: {clips} clips {verdict}, {taken}", file=sys.stderr)
        return result

    # The batches to compile: a search for the largest, or the given one.
    if searched := _AUTO.fullmatch(batch):
        assert limit is not None, place.spec  # by `check_batch`
        unit = config.accumulate
        first = max(1, int(searched["first"] or _FIRST) // unit)
        attempts = largest_batch(attempt, unit, limit, _fixed_bytes(config, mesh), first)
    else:
        attempts = [attempt(int(batch) if batch else config.batch_size // mesh.size)]

    # The plan is of the largest batch that fits, or of the last one if none does.
    fitting = [x for x in attempts if x.compiled is not None]
    chosen = max(fitting, key=lambda x: x.clips) if fitting else attempts[-1]
    tried: list[Tried] = [
        {"clips": x.clips, "bytes": x.wanted, "fits": x.compiled is not None} for x in attempts
    ]
    config = with_batch(config, chosen.clips * mesh.size)
    return costs.make_plan(config, place, mesh, limit, chosen.compiled, tried, began)


def with_batch(config: ml_collections.ConfigDict, clips: int) -> ml_collections.ConfigDict:
    """Return the configuration with `clips` in its global batch and mask groups that divide it."""
    config = config.copy_and_resolve_references().unlock()
    config.batch_size = clips
    if config.mask.get("equal_counts"):
        config.mask.equal_counts = math.gcd(config.mask.equal_counts, clips)
    return config.lock()


def _compile_step(
    config: ml_collections.ConfigDict, mesh: Mesh, place: Topology, limit: int | None
) -> BatchAttempt:
    """Compile the real step for that mesh.

    A TPU's compiler may refuse it for lack of memory. A GPU's does not, so the program's memory is
    compared with the limit here.
    """
    clips = config.batch_size // mesh.size
    on_gpu = isinstance(place.chip, Gpu)
    try:
        compiled = lower(config, mesh).compile(_WITHOUT_A_GPU if on_gpu else None)
    except jax.errors.JaxRuntimeError as error:
        if _FULL not in str(error):
            raise
        return BatchAttempt(clips, topology.refused_bytes(str(error))[0], None)
    wanted = costs.wanted_bytes(compiled.memory_analysis())
    fits = not on_gpu or limit is None or wanted <= limit
    return BatchAttempt(clips, wanted, compiled if fits else None)


def lower(config: ml_collections.ConfigDict, mesh: Mesh) -> jax.stages.Lowered:
    """Lower the step of `musicssl.training.step` from shapes only."""
    samples = audio.crop_samples(config.data.crop_frames)
    with jax.set_mesh(mesh):
        state = step.state_shapes(config)
        clips = jax.ShapeDtypeStruct((config.batch_size, samples), jnp.int16)
        jitted: Any = step.make_step(config, mesh)
        return jitted.lower(state, frozen(config), clips)


def frozen(config: ml_collections.ConfigDict) -> dict:
    """Return shapes of the teacher's fixed part, assuming a frozen encoder like the student."""
    if config.method != "hubert":
        return {}
    t, wanted = config.teacher, targets.of(config)
    quantizers = {}
    for target in wanted:
        width = targets.width(config, target)
        shapes: dict[str, tuple[int, ...]] = {"codebook": (target.clusters, width)}
        if target.quantizer == "random":
            shapes = {"mean": (width,), "deviation": (width,), "projection": (width, t.projection)}
            shapes["codebook"] = (target.clusters, t.projection)
        quantizers[target.name] = {
            name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()
        }
    if not any(target.feature == "layer" for target in wanted):
        return {"quantizers": quantizers}
    params = step.state_shapes(config).params["encoder"]
    encoder = hubert.FrozenEncoder(params, make_encoder(config), t.layer, config.data.normalize)
    return {"encoder": encoder, "quantizers": quantizers}


def _fixed_bytes(config: ml_collections.ConfigDict, mesh: Mesh) -> int:
    """Estimate the bytes of one device that do not grow with the clips: state and gradients."""
    state = costs.state_bytes(step.state_shapes(config), mesh)
    return 2 * state["parameters"] + state["teacher"] + state["optimizer"]


def largest_batch(
    attempt: Callable[[int], BatchAttempt], unit: int, limit: int, fixed: int, first: int = _FIRST
) -> list[BatchAttempt]:
    """Search for the largest batch that the compiler accepts.

    Bytes grow nearly in proportion to the clips, on top of `fixed`. So the next guess is where a
    line through the last attempts reaches the limit, or the middle of the open interval if the last
    guess has not halved it. A compiler may stay below the limit for long by recomputing more and
    more: once it has accepted two guesses of where the limit is, and a step of one, each step up is
    twice the one before.

    Args:
      attempt: compiles that many clips on each device.
      unit: all numbers of clips are multiples of it.
      limit: bytes that a program may take on one device.
      fixed: approximate bytes that do not grow with the clips.
      first: the first guess, in units.

    Returns:
      Every attempt. The largest accepted and the smallest refused are `unit` clips apart; if
      nothing fits, the smallest refused is `unit`.
    """
    tried: list[BatchAttempt] = []
    accepted, guess, surpassed = 0, first, 0
    refused: int | None = None
    while refused is None or refused - accepted > 1:
        result = attempt(unit * guess)
        tried.append(result)
        before = accepted, refused

        accepted, refused = (guess, refused) if result.compiled else (accepted, guess)

        # The next guess.
        reached = _predict(tried, unit, limit, fixed)
        if refused is None:  # go up
            near = reached is not None and reached <= 4 * accepted
            guess = max(accepted + 1, min(reached or 2 * accepted, 4 * accepted))
            if surpassed > 2 or (surpassed > 1 and accepted - before[0] > 1):
                guess = max(guess, accepted + 2 * (accepted - before[0]))
            surpassed += near
        else:  # close the interval
            open_before = math.inf if before[1] is None else before[1] - before[0]
            if reached is None or refused - accepted > open_before / 2:
                reached = (accepted + refused) // 2
            guess = min(max(accepted + 1, reached), refused - 1)
    return tried


def _predict(tried: list[BatchAttempt], unit: int, limit: int, fixed: int) -> int | None:
    """Return the units at which the limit is reached, on a line through two attempts.

    One is the attempt that came nearest to the limit, the other the next nearest that is at least
    an eighth of the clips away, since bytes grow in steps and two neighbours may be equal. None if
    there is no other attempt.
    """
    points = {(x.clips // unit, x.wanted) for x in tried if x.wanted} | {(0, fixed)}
    (units, wanted), *rest = sorted(points, key=lambda x: abs(x[1] - limit))
    others = [x for x in rest if abs(x[0] - units) * 8 >= units and x[1] != wanted]
    if not others:
        return None
    other, less = others[0]
    return int(units + (limit - wanted) * (units - other) / (wanted - less))
