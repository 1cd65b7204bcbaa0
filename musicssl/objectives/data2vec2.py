"""data2vec 2.0 for audio: data2vec's targets at a fraction of the cost per target.

arXiv:2212.07525, in the form of fairseq's data2vec2 with its base audio recipe. Several masked
copies of a clip share one pass of the teacher. The student encodes only the visible frames of a
copy, after positional convolutions that saw zeros at the masked ones; a small convolutional decoder
puts noise in place of the masked frames and predicts their targets. The targets are data2vec 1.0's:
the top blocks' FFN outputs, each standardised over time. The loss, the schedule of the decay, the
guards and the logged scalars are the same too. The teacher also averages the positional
convolutions.

Deviations from fairseq, besides those that `data2vec` names:

- The encoder is data2vec 1.0's, so that a run exports to transformers' Data2VecAudioModel.
  fairseq's attention adds a bias that grows with the distance between two frames (ALiBi), with a
  learned scale for each head. No model in transformers has that, so such a run could not be
  exported. Otherwise the two encoders are the same (stem, projection, positional convolutions,
  post-norm blocks, no further blocks before those that are averaged).
- Masks are drawn for each crop. fairseq draws them for each file and then crops them, so that a
  clip's copies may mask fewer or more frames than fairseq gathers.

Masked frames are zeros, so the encoder's mask embedding gets no gradient, and weight decay shrinks
it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from musicssl.model.dropout import Dropout, bits
from musicssl.model.encoder import Encoder, standardise, torch_init
from musicssl.model.gelu import gelu
from musicssl.model.grouped_conv import grouped_conv
from musicssl.objectives import data2vec, masking
from musicssl.objectives.masking import Batch
from musicssl.objectives.objective import Tree
from musicssl.runtime import sharding


class _Conv(nn.Module):
    """A grouped convolution over time, output as long as the input: [n, t, c] -> [n, t, width]."""

    width: int
    kernel: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = self.kernel, x.shape[-1] // self.groups, self.width
        values = torch_init(shape[0] * shape[1])
        weight, bias = self.param("kernel", values, shape), self.param("bias", values, shape[2:])
        convolve = functools.partial(grouped_conv, groups=self.groups)
        return sharding.by_clip(convolve, x, weight.astype(self.dtype)) + bias.astype(x.dtype)


class Decoder(nn.Module):
    """The decoder; its fields are the leaves of a configuration's `decoder` section.

    outputs: the width of the targets.
    dropout: its rate on the encoder's output. noise: standard deviation of that in masked frames.
    """

    outputs: int
    layers: int
    width: int
    kernel: int
    groups: int
    dropout: float
    noise: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, order: jax.Array) -> jax.Array:
        """Predict the masked frames, in order, from the visible: [n, v, d] -> [n, t - v, outputs].

        Args:
          mask: bool [n, t]. order: int32 [n, t], the masked frames and then the visible.
        """
        t = mask.shape[1]
        masked, visible = order[:, : t - x.shape[1]], order[:, t - x.shape[1] :]
        x = Dropout(self.dropout)(x.astype(self.dtype), deterministic=False)
        noise = self.noise * normal(self.make_rng("dropout"), (*mask.shape, x.shape[-1]))
        x = jnp.where(mask[..., None], noise.astype(x.dtype), spread(x, visible, t))
        for i in range(self.layers):
            conv = _Conv(self.width, self.kernel, self.groups, self.dtype, name=f"conv_{i}")
            y = gelu(standardise(conv(x)).astype(self.dtype))
            x = x + y if x.shape == y.shape else y
        values = torch_init(self.width)
        project = nn.Dense(
            self.outputs,
            dtype=self.dtype,
            kernel_init=values,
            bias_init=values,
            name="projection",
        )
        return project(pick(x, masked))


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw standard normal numbers, float32, from dropout's random bits."""
    uniform = (bits(key, shape) >> 9).astype(jnp.float32) + 0.5  # of (0, 2**23), exact
    return math.sqrt(2) * jax.lax.erf_inv(uniform / 2**22 - 1)


# A copy lists each of its frames at most once, in order: XLA then needs no sums for the gradients.
_LISTED: dict[str, Any] = {
    "indices_are_sorted": True,
    "unique_indices": True,
    "mode": "promise_in_bounds",
}


def pick(x: jax.Array, frames: jax.Array) -> jax.Array:
    """Take the listed frames [n, v], in order, from [n, t, d]: [n, v, d]."""
    return jax.vmap(lambda row, at: row.at[at].get(**_LISTED))(x, frames)


def spread(x: jax.Array, frames: jax.Array, t: int) -> jax.Array:
    """Put frames [n, v, d] back where `pick` took them, with zeros elsewhere: [n, t, d]."""
    zeros = jnp.zeros((t, x.shape[-1]), x.dtype)
    return jax.vmap(lambda row, at: zeros.at[at].set(row, **_LISTED))(x, frames)


def init(
    key: jax.Array, encoder: Encoder, config: ml_collections.ConfigDict, samples: int
) -> tuple[Tree, Tree]:
    """Return the initial parameters {"encoder", "head"} and the teacher {"encoder"}.

    Raises:
      ValueError: the encoder has fewer blocks than the targets average, or the decoder's sizes or
        rates cannot be used.
    """
    _check(encoder, config)
    head_key = jax.random.split(key)[1]
    params, _ = data2vec.init(key, encoder, config, samples)
    x, mask = jnp.zeros((1, 1, encoder.width)), jnp.array([[True, False]])
    keys = {"params": head_key, "dropout": head_key}
    params["head"] = head(encoder, config).init(keys, x, mask, jnp.array([[0, 1]]))["params"]
    return params, first_teacher(params)


def _check(encoder: Encoder, config: ml_collections.ConfigDict) -> None:
    """Refuse unusable settings of the decoder or the masks; `data2vec.init` checks the others."""
    if "copies" not in config.mask:
        raise ValueError("data2vec2 needs block masks: give a mask section with copies")
    if encoder.input_dropout:
        raise ValueError(
            f"encoder.input_dropout is {encoder.input_dropout}, but data2vec2 has none: use 0"
        )
    c = config.decoder
    for name in ("layers", "width", "kernel", "groups"):
        if c[name] < 1:
            raise ValueError(f"decoder.{name} is {c[name]}: use 1 or more")
    if c.width % c.groups or encoder.width % c.groups:
        raise ValueError(
            f"decoder.groups is {c.groups}: choose a divisor of decoder.width, {c.width}, and of "
            f"encoder.width, {encoder.width}"
        )
    if not 0 <= c.dropout < 1:
        raise ValueError(f"decoder.dropout is {c.dropout}: use a number from 0 to below 1")
    if c.noise < 0:
        raise ValueError(f"decoder.noise is {c.noise}: use 0 or more")


def first_teacher(params: Tree) -> Tree:
    """Return the teacher before any update; it has the student's values."""
    return {"encoder": averaged(params["encoder"])}


def head(encoder: Encoder, config: ml_collections.ConfigDict) -> Decoder:
    """Return the decoder that predicts the targets."""
    return Decoder(encoder.width, **config.decoder, dtype=encoder.dtype)


def averaged(encoder_params: Tree) -> Tree:
    """Return the part that the teacher averages: all except stem, projection and mask embedding.

    fairseq's ema_local_encoder is off: the teacher reads the student's features.
    """
    shared = ("stem_", "projection", "mask_embedding")
    return {k: v for k, v in encoder_params.items() if not k.startswith(shared)}


def loss(
    encoder: Encoder,
    config: ml_collections.ConfigDict,
    params: Tree,
    teacher: Tree,
    batch: Batch,
    rngs: dict[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the mean over masked frames of the squared error, summed over channels / sqrt(width).

    Returns:
      This part's share of the global batch's loss, and sums over masked frames for `health`.
    """
    apply: Callable[..., Any] = encoder.apply
    student = {"params": params["encoder"]}
    b, k, t = batch.mask.mask.shape
    m = masking.masked_in_copy(t, config.mask.probability, config.mask.inverse)

    # The teacher reads the unmasked clips once, by way of the student's own features.
    features = apply(student, batch.encoder_input, method="stem")
    z = apply(student, features, method="project")  # [b, t, d]
    with jax.named_scope("teacher"):
        target = data2vec.targets(encoder, config, params, teacher, jax.lax.stop_gradient(z))
        frames = batch.mask.frames[..., :m].reshape(b, k * m, 1)
        target = jnp.take_along_axis(target, frames, axis=1).reshape(b * k, m, -1)  # [n, m, d]

    # The student reads the visible frames of each copy; a row is a copy of a clip, n = b * k.
    x = jnp.where(batch.mask.mask[..., None], 0, z[:, None]).reshape(b * k, t, -1)  # [n, t, d]
    mask, order = batch.mask.mask.reshape(b * k, t), batch.mask.frames.reshape(b * k, t)
    with jax.named_scope("positional"):
        x = x + apply(student, x, method="position")
    x = pick(x, order[:, m:])  # [n, v, d]
    output = apply(student, x, train=True, rngs=rngs, method="transform").hidden[-1]

    # The decoder predicts the teacher's outputs at the other frames.
    with jax.named_scope("head"):
        decoder = {"params": params["head"]}
        noise = {"dropout": rngs["dropout"]}
        predicted: Any = head(encoder, config).apply(decoder, output, mask, order, rngs=noise)
        prediction = predicted.astype(jnp.float32)  # [n, m, d]
    total = jnp.sum(jnp.square(prediction - target)) / math.sqrt(encoder.width)

    # `health` computes deviations from these: sums over masked frames of values and their squares.
    sums = {}
    for name, y in (("target", target), ("prediction", prediction)):
        sums[f"{name}_1"], sums[f"{name}_2"] = y.sum((0, 1)), jnp.square(y).sum((0, 1))  # [d]
    return total / batch.masked, jax.lax.stop_gradient(sums)


after_update = data2vec.after_update
health = data2vec.health
collapse = data2vec.collapse
