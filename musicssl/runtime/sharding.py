"""Where arrays live: a (data, fsdp) mesh, a size rule for parameters, clips over both axes.

Parameters, EMA teacher and optimizer moments follow the same rule, so a state is sharded by its
shapes alone and restores onto any mesh.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Arrays whose rows are a batch's clips.
_ByClip = jax.Array | tuple[jax.Array, ...] | dict[str, jax.Array | None]
CLIPS = P(("data", "fsdp"))
SMALLEST_SHARDED = 2**16  # elements; below this a parameter is replicated


def make_mesh(fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """Return a mesh of all devices, `fsdp` of them sharing each copy of the parameters.

    Devices that share a copy are neighbours on the chips' own links, never on two TPU slices, since
    the network between slices is many times slower: only gradients cross it.

    Raises:
      ValueError: mesh.fsdp does not divide the number of devices; with several slices, the number
        in each slice.
    """
    devices = jax.devices() if devices is None else devices
    tpu = devices[0].platform == "tpu"
    slices = len({getattr(x, "slice_index", 0) for x in devices}) if tpu else 1
    each = len(devices) // slices
    if fsdp < 1 or each % fsdp:
        where = f"{len(devices)} devices" if slices == 1 else f"{each} devices in each slice"
        raise ValueError(f"mesh.fsdp is {fsdp}, but there are {where}: choose a divisor of it")
    shape = (each // fsdp, fsdp)
    if slices == 1:
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        placed = mesh_utils.create_hybrid_device_mesh(
            shape, (slices, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(placed, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def parameter_spec(shape: tuple[int, ...], fsdp: int) -> P:
    """Shard the largest axis that fsdp divides; small arrays are replicated."""
    if fsdp == 1 or int(np.prod(shape)) < SMALLEST_SHARDED:
        return P()
    for axis in sorted(range(len(shape)), key=lambda i: -shape[i]):
        if shape[axis] % fsdp == 0:
            return P(*[None] * axis, "fsdp")
    return P()


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Return a tree of NamedSharding for a tree of arrays or shapes."""
    fsdp = mesh.shape["fsdp"]
    return jax.tree.map(lambda x: NamedSharding(mesh, parameter_spec(x.shape, fsdp)), state)


def whole(tree: Any) -> Any:
    """Gather parameters of `state_shardings` on every device; return gradients to their shards.

    This is stated explicitly, since XLA would otherwise split each matrix product of a shard, and
    with it the convolutions, to overlap them with exchanges: the base model then takes ten times as
    many of a TPU's cycles.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1:
        return tree
    return jax.tree.map(lambda x: _gathered(x, parameter_spec(x.shape, mesh.shape["fsdp"])), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(x: jax.Array, spec: P) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, P())


_gathered.defvjp(
    lambda x, spec: (_gathered(x, spec), None),
    lambda spec, _, dy: (jax.lax.with_sharding_constraint(_gathered(dy, spec), spec),),
)


def platform() -> str:
    """Return the platform to compile for: that of the current mesh, or jax's default."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def clips_here(clips: int) -> int:
    """Return how many of the global batch's clips one device has."""
    mesh = jax.sharding.get_abstract_mesh()
    return clips if mesh.empty or clips % mesh.size else clips // mesh.size


def by_clip(function: Callable[..., jax.Array], clips: _ByClip, *shared: jax.Array) -> jax.Array:
    """Apply function to each device's own clips: an array, or a tree of arrays with equal rows.

    XLA does not partition a grouped convolution over the batch on CPU and GPU: it gathers the
    whole batch on every device (openxla/xla#47945). shard_map leaves it no choice.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    if devices == 1 or jax.tree.leaves(clips)[0].shape[0] % devices:
        return function(clips, *shared)

    def local(clips: _ByClip, *shared: jax.Array) -> jax.Array:
        # Each device computes its own gradient of the shared arrays. These are summed here, not in
        # a custom gradient of the function.
        own = (jax.lax.pcast(x, mesh.axis_names, to="varying") for x in shared)
        return function(clips, *own)

    specs = (CLIPS, *[P()] * len(shared))
    checked = bool(shared)  # a Pallas kernel does not say over which axes its results vary
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=CLIPS, check_vma=checked)
    return mapped(clips, *shared)


def rows_here(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Return the rows of the global batch that this process's devices hold, ascending."""
    indices = NamedSharding(mesh, CLIPS).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[i] for i in indices.values()]))


def place_clips(mesh: Mesh, batch_size: int, rows: np.ndarray, local: np.ndarray) -> jax.Array:
    """Place this process's rows [rows, n] as its part of the global batch [b, n]."""

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # only an array without axes has none
        return local[np.searchsorted(rows, np.arange(batch_size)[index[0]])]

    shape = (batch_size, *local.shape[1:])
    return jax.make_array_from_callback(shape, NamedSharding(mesh, CLIPS), shard)
