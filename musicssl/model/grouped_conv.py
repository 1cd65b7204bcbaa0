"""A grouped convolution over time with gradients that are fast on every backend.

XLA's own gradient for the weights of a grouped convolution is a single-threaded loop on CPU (24
times slower than the form below for k=128 and 16 groups, on 4 clips of 5 s), and as slow as that of
an ungrouped convolution on GPU (jax#13800).

A TPU multiplies 128 channels by 128 at a time, but a group of the base model has 48. There, two
groups become one of 96 channels, with zeros between the two, and the gradient for the input reads
weights that are reversed beforehand. For 16 clips of 256 frames and 16 groups, forward and backward
take 2.8 million cycles instead of 4.4 million at k=128, and 0.61 million instead of 0.83 million at
k=19 (libtpu 0.0.42's estimates).

On a GPU, each group is one dense convolution over eight frames folded into channels, which keeps
the matrix units busy. On an H200 with k=128 and 8 clips of 1496 frames, the forward pass takes 0.56
ms, instead of 0.96 ms with cuDNN's grouped convolution. Inside a training step, XLA chose one of
cuDNN's algorithms that takes 37 ms, which was half of the step.
"""

import functools

import jax
import jax.numpy as jnp

from musicssl.runtime import sharding

_TPU_LANES = 128


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def grouped_conv(x: jax.Array, weight: jax.Array, groups: int) -> jax.Array:
    """Convolve [b, t, c] with weight [k, c / groups, d] -> [b, t, d], padded by k // 2.

    An even kernel's surplus last frame is cut, as in wav2vec 2.0.
    """
    plain = functools.partial(convolve, groups=groups)
    dense = functools.partial(convolve_packed, groups=groups)
    on_gpu = functools.partial(convolve_on_gpu, groups=groups)
    return jax.lax.platform_dependent(x, weight, tpu=dense, cuda=on_gpu, default=plain)


def in_order(weight: jax.Array) -> jax.Array:
    """Return a convolution's weights; on a GPU, put their gradient in order before the update.

    cuDNN's gradient has its axes in another order. If the update of the weights reorders them, it
    cannot write over its own input, and XLA copies the weights and both moments afterwards.
    """
    return _in_order(weight) if sharding.platform() == "gpu" else weight


@jax.custom_vjp
def _in_order(weight: jax.Array) -> jax.Array:
    return weight


def _ordered(_: None, dw: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.optimization_barrier(dw.reshape(-1)).reshape(dw.shape),)  # one axis, one order


_in_order.defvjp(lambda weight: (weight, None), _ordered)


def convolve(x: jax.Array, weight: jax.Array, groups: int) -> jax.Array:
    return _padded(x, weight, groups, _padding(weight.shape[0]))


def _padded(x: jax.Array, weight: jax.Array, groups: int, pad: tuple[int, int]) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        weight,
        window_strides=(1,),
        padding=[pad],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


def _padding(kernel: int) -> tuple[int, int]:
    return kernel // 2, kernel // 2 - 1 + kernel % 2


def _forward(x: jax.Array, weight: jax.Array, groups: int) -> tuple[jax.Array, tuple]:
    return grouped_conv(x, weight, groups), (x, weight)


def backward(groups: int, saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    plain = functools.partial(gradients, groups=groups)
    dense = functools.partial(gradients_packed, groups=groups)
    on_gpu = functools.partial(gradients_on_gpu, groups=groups)
    return jax.lax.platform_dependent(*saved, dy, tpu=dense, cuda=on_gpu, default=plain)


grouped_conv.defvjp(_forward, backward)


def gradients(
    x: jax.Array, weight: jax.Array, dy: jax.Array, groups: int
) -> tuple[jax.Array, jax.Array]:
    """Return XLA's gradient for the input, and `_weight_gradient` for the weights."""
    dx = jax.vjp(lambda x: convolve(x, weight, groups), x)[1](dy)[0]
    return dx, _weight_gradient(x, weight, dy, groups)


def _weight_gradient(x: jax.Array, weight: jax.Array, dy: jax.Array, groups: int) -> jax.Array:
    """Convolve densely for each group, with x's channels as the batch and clips as features."""
    by_group = [
        jax.lax.conv_general_dilated(
            xg,
            dg,
            window_strides=(1,),
            padding=[_padding(weight.shape[0])],
            dimension_numbers=("CWN", "IWO", "NWC"),
        ).swapaxes(0, 1)  # [c / groups, k, d / groups] -> [k, c / groups, d / groups]
        for xg, dg in zip(jnp.split(x, groups, -1), jnp.split(dy, groups, -1), strict=True)
    ]
    return jnp.concatenate(by_group, axis=-1)  # [k, c / groups, d]


_FOLD = 8  # frames that are folded into channels on a GPU
_SHORT = 32  # taps up to which a GPU takes all groups in one product


def convolve_on_gpu(x: jax.Array, weight: jax.Array, groups: int) -> jax.Array:
    form = convolve_windows if weight.shape[0] <= _SHORT else convolve_apart
    return form(x, weight, groups)


def gradients_on_gpu(
    x: jax.Array, weight: jax.Array, dy: jax.Array, groups: int
) -> tuple[jax.Array, jax.Array]:
    form = gradients_windows if weight.shape[0] <= _SHORT else gradients_apart
    return form(x, weight, dy, groups)


def convolve_windows(x: jax.Array, weight: jax.Array, groups: int) -> jax.Array:
    """Compute `convolve` as one product of all groups, over windows of folded frames."""
    return _multiply(_windows(x, weight.shape[0], groups, _padding(weight.shape[0])), weight, x)


def gradients_windows(
    x: jax.Array, weight: jax.Array, dy: jax.Array, groups: int
) -> tuple[jax.Array, jax.Array]:
    """Compute each of `gradients` as one product of all groups."""
    k, pad = weight.shape[0], _padding(weight.shape[0])
    before, after = (k - 1 - n for n in pad)
    dx = _multiply(_windows(dy, k, groups, (before, after)), _turned(weight, groups), dy)

    # The product has a gradient for each place of a weight in a window; their sum is the weight's.
    b, t, d = dy.shape
    steps = -(-t // _FOLD)
    folded = jnp.pad(dy, ((0, 0), (0, steps * _FOLD - t), (0, 0)))
    folded = folded.reshape(b * steps, _FOLD, groups, d // groups).transpose(2, 0, 1, 3)
    folded = folded.reshape(groups, b * steps, -1)
    wide = jnp.einsum("gnk,gnd->gkd", _windows(x, k, groups, pad), folded)
    return dx, _narrow(wide.astype(jnp.float32), k, weight.shape[1]).astype(weight.dtype)


def _taps(kernel: int) -> int:
    """Return how many steps of folded frames the windows of one step's frames reach over."""
    return -(-(kernel + _FOLD - 1) // _FOLD)


def _windows(x: jax.Array, kernel: int, groups: int, pad: tuple[int, int]) -> jax.Array:
    """Return what each step of _FOLD output frames sees: [b, t, c] -> [g, b * steps, window]."""
    b, t, c = x.shape
    steps, taps = -(-t // _FOLD), _taps(kernel)
    x = jnp.pad(x, ((0, 0), (pad[0], (steps + taps - 1) * _FOLD - t - pad[0]), (0, 0)))
    x = x.reshape(b, steps + taps - 1, _FOLD, groups, c // groups)
    seen = jnp.stack([x[:, i : i + steps] for i in range(taps)], axis=2)  # [b, s, taps, f, g, c]
    return seen.transpose(4, 0, 1, 2, 3, 5).reshape(groups, b * steps, -1)


def _widen(weight: jax.Array, groups: int) -> jax.Array:
    """Put the weights where each of _FOLD frames has its window: [k, c, d] -> [g, window, f * d].

    The d on the right is that of one group.
    """
    k, c, d = weight.shape
    long = _taps(k) * _FOLD
    shifted = [jnp.pad(weight, ((r, long - k - r), (0, 0), (0, 0))) for r in range(_FOLD)]
    wide = jnp.stack(shifted).reshape(_FOLD, long, c, groups, d // groups)
    return wide.transpose(3, 1, 2, 0, 4).reshape(groups, long * c, -1)


def _narrow(wide: jax.Array, k: int, c: int) -> jax.Array:
    """Sum over the _FOLD places of each weight, the transpose of `_widen`: [k, c, d]."""
    groups, long = wide.shape[0], _taps(k) * _FOLD
    places = wide.reshape(groups, long, c, _FOLD, -1).transpose(3, 1, 2, 0, 4)
    places = places.reshape(_FOLD, long, c, -1)
    return sum(places[r, r : r + k] for r in range(_FOLD))  # type: ignore[return-value]


def _multiply(windows: jax.Array, weight: jax.Array, like: jax.Array) -> jax.Array:
    """Multiply windows by widened weights, and put the frames in order: [b, t, d].

    Args:
      like: an array with as many clips and frames as the result.
    """
    (b, t, _), groups, d = like.shape, windows.shape[0], weight.shape[2]
    # Otherwise XLA joins a student's product with its teacher's, which has the same weights, and
    # copies the windows of both for it.
    windows, wide = jax.lax.optimization_barrier((windows, _widen(weight, groups)))
    y = jnp.einsum("gnk,gkd->gnd", windows, wide)
    y = y.reshape(groups, b, -1, _FOLD, d // groups).transpose(1, 2, 3, 0, 4)
    return y.reshape(b, -1, d)[:, :t]


def convolve_apart(x: jax.Array, weight: jax.Array, groups: int) -> jax.Array:
    """Compute `convolve` as one dense convolution per group, over frames folded into channels."""
    return apart(x, weight, groups, _padding(weight.shape[0]))


def gradients_apart(
    x: jax.Array, weight: jax.Array, dy: jax.Array, groups: int
) -> tuple[jax.Array, jax.Array]:
    """Compute `gradients` with a dense convolution for each group."""
    before, after = (weight.shape[0] - 1 - n for n in _padding(weight.shape[0]))
    dx = apart(dy, _turned(weight, groups), groups, (before, after))
    return dx, _weight_gradient(x, weight, dy, groups)


def apart(x: jax.Array, weight: jax.Array, groups: int, pad: tuple[int, int]) -> jax.Array:
    """Convolve [b, t, c] -> [b, t, d]; _FOLD frames of a group become the channels of one."""
    b, t, _ = x.shape
    k, c, d = weight.shape[0], weight.shape[1], weight.shape[2] // groups  # of one group
    steps = -(-t // _FOLD)
    taps = -(-(k + _FOLD - 1) // _FOLD)
    x = jnp.pad(x, ((0, 0), (pad[0], (steps + taps - 1) * _FOLD - t - pad[0]), (0, 0)))

    results = []
    for xg, wg in zip(jnp.split(x, groups, -1), jnp.split(weight, groups, -1), strict=True):
        # tap i of output frame r sees input frame r + i
        shifted = [jnp.pad(wg, ((r, taps * _FOLD - k - r), (0, 0), (0, 0))) for r in range(_FOLD)]
        wide = jnp.stack(shifted, axis=2).reshape(taps, _FOLD * c, _FOLD * d)
        y = jax.lax.conv_general_dilated(
            xg.reshape(b, -1, _FOLD * c),
            wide,
            window_strides=(1,),
            padding="VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
        )  # [b, steps, _FOLD * d]
        results.append(y.reshape(b, steps * _FOLD, d)[:, :t])
    return jnp.concatenate(results, axis=-1)


def convolve_packed(x: jax.Array, weight: jax.Array, groups: int) -> jax.Array:
    """Compute `convolve` with neighbouring groups as one."""
    together = groups_together(weight, groups)
    return convolve(x, _pack(weight, groups, together), groups // together)


def gradients_packed(
    x: jax.Array, weight: jax.Array, dy: jax.Array, groups: int
) -> tuple[jax.Array, jax.Array]:
    """Compute `gradients` with neighbouring groups as one."""
    together = groups_together(weight, groups)
    wide, fewer = _pack(weight, groups, together), groups // together
    before, after = (weight.shape[0] - 1 - n for n in _padding(weight.shape[0]))
    dx = _padded(dy, _turned(wide, fewer), fewer, (before, after))
    dw = jax.vjp(lambda w: convolve(x, w, fewer), wide)[1](dy)[0]
    return dx, _unpack(dw, groups, together)


def groups_together(weight: jax.Array, groups: int) -> int:
    """Return the largest number of neighbouring groups that the TPU's lanes hold."""
    most = max(1, _TPU_LANES // weight.shape[1])
    return max(n for n in range(1, most + 1) if groups % n == 0)


def _pack(weight: jax.Array, groups: int, together: int) -> jax.Array:
    """Spread [k, c, d] to [k, together * c, d], zero between inputs and outputs of two groups."""
    if together == 1:
        return weight
    d = weight.shape[2]
    place = jnp.arange(d) // (d // groups) % together
    return jnp.concatenate([jnp.where(place == i, weight, 0) for i in range(together)], axis=1)


def _unpack(wide: jax.Array, groups: int, together: int) -> jax.Array:
    """Return the elements that `_pack` placed: [k, together * c, d] -> [k, c, d]."""
    parts, d = jnp.split(wide, together, axis=1), wide.shape[2]
    place = jnp.arange(d) // (d // groups) % together
    own = [jnp.where(place == i, part, 0) for i, part in enumerate(parts)]
    return sum(own)  # type: ignore[return-value]  # an int only where there are no parts


def _turned(weight: jax.Array, groups: int) -> jax.Array:
    """Reverse each group's taps, exchange inputs and outputs: [k, c, d] -> [k, d / groups, e].

    There e is groups * c, the channels of the whole input.

    The barrier keeps XLA from doing so inside the convolution, which takes twice the cycles.
    """
    k, c, d = weight.shape
    by_group = weight[::-1].reshape(k, c, groups, d // groups).transpose(0, 3, 2, 1)
    return jax.lax.optimization_barrier(by_group.reshape(k, d // groups, groups * c))
