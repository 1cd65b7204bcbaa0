"""The wav2vec 2.0 family of encoders: audio in, every hidden state out.

One implementation serves data2vec-audio (layer-norm stem, five k=19 positional convolutions),
HuBERT and wav2vec 2.0 (group-norm stem, one k=128 weight-normed positional convolution), and the
large variants with pre-norm blocks. Parameter trees map one to one onto Hugging Face's
Data2VecAudioModel, HubertModel and Wav2Vec2Model (see `state_dict`).

Sources: wav2vec 2.0 (arXiv:2006.11477), HuBERT (arXiv:2106.07447), data2vec (arXiv:2202.03555);
initial values as in fairseq. Axis letters: b clips, n samples, t frames, c channels of the stem,
d width, h heads.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from musicssl.audio import STEM_WINDOW, frame_counts
from musicssl.model import filterbank
from musicssl.model.attention import attention, attention_on_gpu
from musicssl.model.dense import Dense, DenseValues, together
from musicssl.model.dropout import Dropout, salts
from musicssl.model.gelu import gelu
from musicssl.model.grouped_conv import grouped_conv, in_order
from musicssl.model.stem import CHANNELS, KERNELS, NORM_EPSILON, TIME, Norm, StemLayer, stem
from musicssl.runtime import sharding

_conv_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # kaiming_normal
_bert_init = nn.initializers.normal(0.02)  # fairseq init_bert_params


def torch_init(fan_in: int):
    """Return PyTorch's default for linear and convolution layers: uniform in +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


class Output(NamedTuple):
    """What the transformer returns.

    hidden: layers + 1 arrays [b, t, d]: the first is the transformer's input, the last its output.
    ffn: layers arrays [b, t, d]: each block's second FFN matrix, before dropout and residual sum
        (data2vec's targets).
    """

    hidden: list[jax.Array]
    ffn: list[jax.Array]


class ConvValues(nn.Module):
    """The parameters of one convolution of the stem; `start` makes its values if not random."""

    width: int
    taps: int
    bias: bool
    start: Callable[[], np.ndarray] | None = None

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array | None]:
        start = self.start
        init = (lambda *_: jnp.asarray(start())) if start else _conv_init
        kernel = self.param("kernel", init, (self.taps, channels, self.width))
        zeros = nn.initializers.zeros
        return kernel, self.param("bias", zeros, (self.width,)) if self.bias else None


class NormValues(nn.Module):
    """The parameters of one norm of the stem."""

    width: int

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        shape = (self.width,)
        scale = self.param("scale", nn.initializers.ones, shape)
        return scale, self.param("bias", nn.initializers.zeros, shape)


class PositionalConv(nn.Module):
    """One grouped convolution over time, odd or even kernel, output as long as the input.

    `weight_norm` stores the kernel as a direction and one length per tap (torch weight_norm dim=2).
    """

    kernel: int
    groups: int
    weight_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        shape = (self.kernel, width // self.groups, width)
        if self.weight_norm:
            deviation = math.sqrt(4 / (self.kernel * width))
            direction = self.param("direction", nn.initializers.normal(deviation), shape)
            length = self.param("length", lambda *_: jnp.linalg.norm(direction, axis=(1, 2)), None)
            norm = jnp.linalg.norm(direction, axis=(1, 2))
            weight = direction * (length / norm)[:, None, None]
            bias = self.param("bias", nn.initializers.zeros, (width,))
        else:
            init = torch_init(self.kernel * width // self.groups)
            weight = self.param("kernel", init, shape)
            bias = self.param("bias", init, (width,))
        convolve = functools.partial(grouped_conv, groups=self.groups)
        weight = in_order(weight.astype(self.dtype))
        return sharding.by_clip(convolve, x, weight) + bias.astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over all frames, softmax in float32."""

    heads: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, frames: jax.Array | None = None) -> jax.Array:
        b, t, d = x.shape

        def project(name: str, y: jax.Array, alone: bool = False) -> jax.Array:
            return Dense(d, self.dtype, _bert_init, alone=alone, name=name)(y)

        key = self.make_rng("dropout") if train and self.dropout else None
        if sharding.platform() == "gpu":
            values = [DenseValues(d, _bert_init, name=f"{name}_proj")(d) for name in "qkv"]
            qkv = together(x, values, self.dtype).reshape(b, t, 3, self.heads, -1)
            y = attention_on_gpu(qkv, key, self.dropout, frames)  # [b, t, h, d/h]
        else:
            q, k, v = (
                project(f"{name}_proj", x, alone=True).reshape(b, t, self.heads, -1)
                for name in "qkv"
            )  # [b, t, h, d/h]
            y = attention(q, k, v, key, self.dropout, frames)
        return project("out_proj", y.reshape(b, t, d))


class FeedForward(nn.Module):
    """Two matrices with an exact GELU between them."""

    width: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        dense = lambda n, name: Dense(n, self.dtype, _bert_init, name=name)  # noqa: E731
        y = gelu(dense(self.width, "intermediate_dense")(x))
        y = Dropout(self.dropout)(y, deterministic=not train)
        return dense(x.shape[-1], "output_dense")(y)


class Block(nn.Module):
    """One transformer block, post-norm (base models) or pre-norm (large ones)."""

    heads: int
    ffn_width: int
    pre_norm: bool
    dropout: float
    attention_dropout: float
    activation_dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, frames: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        dropout = Dropout(self.dropout)
        drop = functools.partial(dropout, deterministic=not train)
        attention = Attention(self.heads, self.attention_dropout, self.dtype, name="attention")
        ffn = FeedForward(self.ffn_width, self.activation_dropout, self.dtype, name="feed_forward")
        if self.pre_norm:
            first = layer_norm("layer_norm", self.dtype)
            second = layer_norm("final_layer_norm", self.dtype)
            x = x + drop(attention(first(x), train, frames))
            y = ffn(second(x), train)
            return x + drop(y), y
        x = self.normed_sum("layer_norm", x, attention(x, train, frames), dropout, train)
        y = ffn(x, train)
        return self.normed_sum("final_layer_norm", x, y, dropout, train), y

    def normed_sum(
        self, name: str, x: jax.Array, y: jax.Array, dropout: Dropout, train: bool
    ) -> jax.Array:
        """Apply the named norm to x + dropout(y); on a GPU in one kernel each way."""
        if sharding.platform() != "gpu" or self.dtype != jnp.bfloat16:
            return layer_norm(name, self.dtype)(x + dropout(y, deterministic=not train))
        from musicssl.model import residual_norm_gpu

        rate = self.dropout if train else 0.0
        b, _, d = x.shape
        affine = jnp.broadcast_to(jnp.stack(NormValues(d, name=name)()), (b, 2, d))
        words = (
            jnp.stack(salts(dropout.make_rng("dropout"), (b,)), axis=-1)
            if rate
            else jnp.zeros((b, 2), jnp.uint32)
        )
        function = functools.partial(residual_norm_gpu.normed_sum, rate=rate)
        return sharding.by_clip(lambda x: function(*x), (x, y, affine, words))


def layer_norm(name: str, dtype: jnp.dtype, affine: bool = True) -> nn.LayerNorm:
    """Return a layer norm over the last axis with float32 statistics."""
    return nn.LayerNorm(NORM_EPSILON, dtype=dtype, use_bias=affine, use_scale=affine, name=name)


class Encoder(nn.Module):
    """The encoder; its fields are the leaves of a configuration's `encoder` section.

    stem_norm: "layer" (after every convolution) or "group" (after the first only).
    pos_conv_depth: 0 for one weight-normed convolution (HuBERT, wav2vec 2.0), else the number of
        plain ones, each followed by a layer norm without parameters and GELU (data2vec).
    feature_grad_mult: factor on the gradient that reaches the stem.
    stem_start: initial values of the stem's convolutions: "random" or "filterbank" (the module).
    """

    layers: int
    width: int
    heads: int
    ffn_width: int
    stem_width: int
    stem_norm: str
    stem_bias: bool
    pos_conv_depth: int
    pos_conv_kernel: int
    pos_conv_groups: int
    pre_norm: bool
    dropout: float
    attention_dropout: float
    activation_dropout: float
    input_dropout: float
    layerdrop: float
    feature_grad_mult: float
    stem_start: str = "random"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.mask_embedding = self.param(
            "mask_embedding", nn.initializers.uniform(1.0), (self.width,)
        )

        # the stem
        if self.stem_norm not in ("group", "layer"):
            raise ValueError(f"encoder.stem_norm is {self.stem_norm!r}: use 'layer' or 'group'")
        starts = [self._stem_start(i) for i in range(len(KERNELS))]
        self.convs = [
            ConvValues(self.stem_width, taps, self.stem_bias, start, name=f"stem_conv_{i}")
            for i, (taps, start) in enumerate(zip(KERNELS, starts, strict=True))
        ]
        norms = 7 if self.stem_norm == "layer" else 1
        self.norms = [NormValues(self.stem_width, name=f"stem_norm_{i}") for i in range(norms)]

        # the projection
        self.projection_norm = layer_norm("projection_norm", self.dtype)
        init = torch_init(self.stem_width)
        self.projection = Dense(self.width, self.dtype, init, init, name="projection")

        # the positional convolutions
        self.pos_convs = [
            PositionalConv(
                self.pos_conv_kernel,
                self.pos_conv_groups,
                self.pos_conv_depth == 0,
                self.dtype,
                name=f"pos_conv_{i}",
            )
            for i in range(self.pos_conv_depth or 1)
        ]

        # the transformer
        self.encoder_norm = layer_norm("encoder_norm", self.dtype)
        self.blocks = [
            Block(
                self.heads,
                self.ffn_width,
                self.pre_norm,
                self.dropout,
                self.attention_dropout,
                self.activation_dropout,
                self.dtype,
                name=f"layer_{i}",
            )
            for i in range(self.layers)
        ]
        self.drop = Dropout(self.dropout)
        self.drop_input = Dropout(self.input_dropout)

    def _stem_start(self, layer: int) -> Callable[[], np.ndarray] | None:
        """Return the initializer of a stem convolution's kernel; None if it is random."""
        if self.stem_start == "random":
            return None
        if self.stem_start != "filterbank":
            raise ValueError(
                f"encoder.stem_start is {self.stem_start!r}: use 'random' or 'filterbank'"
            )
        if self.stem_norm != "group":
            raise ValueError(
                "encoder.stem_start is 'filterbank', which a stem with a norm after every "
                "convolution would undo: use --config.encoder.stem_norm=group, or 'random'"
            )
        return lambda: filterbank.kernels(self.stem_width)[layer]

    def __call__(
        self, audio: jax.Array, train: bool = False, samples: jax.Array | None = None
    ) -> Output:
        """Turn audio [b, n], normalised or raw as in training, into every hidden state.

        Args:
          samples: the length of each clip, int [b], if clips of several lengths are padded to one
            length with zeros. The states of a clip's `audio.frame_counts(samples)` frames are then
            those of the clip alone, and those after them mean nothing. A clip shorter than one
            window of the stem is padded with zeros to that window.

        Raises:
          ValueError: the audio is too short for one frame.
        """
        if samples is None:
            return self.contextualize(self.project(self.stem(audio)), train)
        samples = jnp.maximum(jnp.asarray(samples, jnp.int32), STEM_WINDOW)
        x = self.project(self.stem(audio, samples))
        return self.contextualize(x, train, frame_counts(samples))

    def stem(self, audio: jax.Array, samples: jax.Array | None = None) -> jax.Array:
        """Turn [b, n] into [b, t, c], the features that HuBERT's penalty is computed on."""
        norms: list[Norm | None] = [Norm(*norm()) for norm in self.norms]
        norms += [None] * (len(self.convs) - len(norms))
        layers = [
            StemLayer(*conv(self.stem_width if i else 1), norm)
            for i, (conv, norm) in enumerate(zip(self.convs, norms, strict=True))
        ]
        axis = TIME if self.stem_norm == "group" else CHANNELS
        x = stem(audio.astype(self.dtype), layers, axis, samples)
        return _scale_gradient(x, self.feature_grad_mult)

    def project(self, features: jax.Array) -> jax.Array:
        """Project features [b, t, c] -> [b, t, d]."""
        return self.projection(self.projection_norm(features))

    def mask(self, x: jax.Array, mask: jax.Array, train: bool = True) -> jax.Array:
        """Drop some of the input, then put the learned embedding where the mask [b, t] is set."""
        x = self.drop_input(x, deterministic=not train)
        return jnp.where(mask[..., None], self.mask_embedding.astype(x.dtype), x)

    def contextualize(
        self, x: jax.Array, train: bool = False, frames: jax.Array | None = None
    ) -> Output:
        """Take projected features [b, t, d] through positional convolution and transformer.

        Args:
          frames: the number of each clip's frames, [b], if padding follows them.
        """
        with jax.named_scope("positional"):
            x = x + self.position(x, frames)
        return self.transform(x, train, frames)

    def transform(
        self, x: jax.Array, train: bool = False, frames: jax.Array | None = None
    ) -> Output:
        """Take frames with positions added, [b, t, d], through the transformer."""
        x = x if self.pre_norm else self.encoder_norm(x)
        x = self.drop(x, deterministic=not train)
        hidden, ffn = [x], []
        keep = self.keep_layers(train)
        for block, kept in zip(self.blocks, keep, strict=True):
            y, before_residual = block(x, train, frames)
            x = y if kept is None else jnp.where(kept, y, x)
            hidden.append(x)
            ffn.append(before_residual)
        if self.pre_norm:
            hidden[-1] = self.encoder_norm(x)
        return Output(hidden, ffn)

    def position(self, x: jax.Array, frames: jax.Array | None = None) -> jax.Array:
        """Compute what the positional convolutions add to [b, t, d]; they see zeros for padding."""
        for conv in self.pos_convs:
            if frames is not None:
                x = jnp.where(jnp.arange(x.shape[1])[:, None] < frames[:, None, None], x, 0)
            x = conv(x)
            if self.pos_conv_depth:
                x = standardise(x).astype(self.dtype)
            x = gelu(x)
        return x

    def keep_layers(self, train: bool) -> list[jax.Array | None]:
        """Draw which layers are kept in this step (LayerDrop); None if none can be dropped."""
        if not (train and self.layerdrop):
            return [None] * self.layers
        key = self.make_rng("layerdrop")
        return list(jax.random.bernoulli(key, 1 - self.layerdrop, (self.layers,)))


def standardise(x: jax.Array) -> jax.Array:
    """Standardise over the last axis in float32: a layer norm without parameters."""
    x = x.astype(jnp.float32)
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x - mean).mean(axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + NORM_EPSILON)


def _scale_gradient(x: jax.Array, factor: float) -> jax.Array:
    """Return the same value, whose gradient is multiplied by `factor` (fairseq GradMultiply)."""
    if factor == 1:
        return x
    fixed = jax.lax.stop_gradient(x)
    return fixed + factor * (x - fixed) if factor else fixed  # with 0 there is no backward pass


def make_encoder(config: ml_collections.ConfigDict) -> Encoder:
    """Return the encoder of a run's configuration, in its precision."""
    return Encoder(**config.encoder, dtype=jnp.dtype(config.precision))
