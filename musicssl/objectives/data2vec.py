"""data2vec 1.0 for audio: predict an EMA teacher's latent targets at masked frames.

arXiv:2202.03555, in the form of fairseq's data2vec_audio with its base LibriSpeech recipe, which
music2vec adopts (arXiv:2307.05161). The teacher is only the transformer: it reads the student's own
unmasked features and shares the student's positional convolution.

Deviations from fairseq: the teacher averages the float32 parameters (fairseq averages the fp16
copies), and steps once per optimizer update, even with accumulated gradients (fairseq steps it once
per micro-batch). Clips are normalised after cropping (fairseq normalises whole files), and
LayerDrop draws once per step (fairseq draws once per step on each GPU).
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from musicssl.model.encoder import Encoder, torch_init
from musicssl.model.stem import NORM_EPSILON
from musicssl.objectives.masking import Batch
from musicssl.objectives.objective import Tree


def init(
    key: jax.Array, encoder: Encoder, config: ml_collections.ConfigDict, samples: int
) -> tuple[Tree, Tree]:
    """Return the initial parameters {"encoder", "head"} and the teacher {"encoder"}.

    Raises:
      ValueError: the encoder has fewer blocks than the targets average.
    """
    if not 1 <= config.data2vec.top_layers <= encoder.layers:
        raise ValueError(
            f"data2vec.top_layers is {config.data2vec.top_layers}: use 1 to encoder.layers, "
            f"{encoder.layers}"
        )
    encoder_key, head_key = jax.random.split(key)
    params = {
        "encoder": encoder.init(encoder_key, jnp.zeros((1, samples)))["params"],
        "head": head(encoder).init(head_key, jnp.zeros((1, 1, encoder.width)))["params"],
    }
    return params, first_teacher(params)


def first_teacher(params: Tree) -> Tree:
    """Return the teacher before any update; it has the student's values."""
    return {"encoder": averaged(params["encoder"])}


def head(encoder: Encoder) -> nn.Dense:
    """Return the layer that predicts the targets."""
    values = torch_init(encoder.width)
    return nn.Dense(encoder.width, dtype=encoder.dtype, kernel_init=values, bias_init=values)


def averaged(encoder_params: Tree) -> Tree:
    """Return the part that the teacher averages: the blocks and the norm before them.

    fairseq's ema_layers_only copies the positional convolutions each step instead, so the
    teacher here reads the student's and holds none.
    """
    return {k: v for k, v in encoder_params.items() if k.startswith(("layer_", "encoder_norm"))}


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

    # The teacher reads the unmasked clips, by way of the student's own features.
    features = apply(student, batch.encoder_input, method="stem")
    z = apply(student, features, method="project")  # [b, t, d]
    with jax.named_scope("teacher"):
        target = targets(encoder, config, params, teacher, jax.lax.stop_gradient(z))

    # The student reads them masked and predicts the teacher's outputs.
    masked = apply(student, z, batch.mask.mask, rngs=rngs, method="mask")
    output = apply(student, masked, train=True, rngs=rngs, method="contextualize").hidden[-1]
    with jax.named_scope("head"):
        predicted: Any = head(encoder).apply({"params": params["head"]}, output)
        prediction = predicted.astype(jnp.float32)

    weight = batch.mask.mask[..., None].astype(jnp.float32)  # [b, t, 1]
    total = jnp.sum(weight * jnp.square(prediction - target)) / math.sqrt(encoder.width)

    # `health` computes deviations from these: sums over masked frames of values and their squares.
    sums = {}
    for name, x in (("target", target), ("prediction", prediction)):
        sums[f"{name}_1"] = jnp.sum(weight * x, axis=(0, 1))  # [d]
        sums[f"{name}_2"] = jnp.sum(weight * x**2, axis=(0, 1))  # [d]
    return total / batch.masked, jax.lax.stop_gradient(sums)


def targets(
    encoder: Encoder, config: ml_collections.ConfigDict, params: Tree, teacher: Tree, z: jax.Array
) -> jax.Array:
    """Return the mean of the top blocks' FFN outputs, each standardised over time.

    Each clip and channel is standardised separately: [b, t, d] -> float32 [b, t, d] (data2vec,
    section 3.3).
    """
    shared = {k: v for k, v in params["encoder"].items() if k not in teacher["encoder"]}
    variables = jax.lax.stop_gradient({"params": shared | teacher["encoder"]})
    outputs: Any = encoder.apply(variables, z, method="contextualize")
    top = outputs.ffn[encoder.layers - config.data2vec.top_layers :]
    total: Any = sum(_standardise_over_time(x) for x in top)
    return total / len(top)


def _standardise_over_time(x: jax.Array) -> jax.Array:
    """Apply an instance norm without parameters, in float32."""
    x = x.astype(jnp.float32)
    mean = x.mean(axis=1, keepdims=True)  # [b, 1, d]
    variance = jnp.square(x - mean).mean(axis=1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + NORM_EPSILON)


def after_update(
    config: ml_collections.ConfigDict, params: Tree, teacher: Tree, updates: jax.Array
) -> Tree:
    """Return decay * teacher + (1 - decay) * student, after `updates` optimizer updates."""
    decay = ema_decay(config, updates)
    student = {name: params["encoder"][name] for name in teacher["encoder"]}
    mix = jax.tree.map(lambda t, s: t + (1 - decay) * (s - t), teacher["encoder"], student)
    return {"encoder": mix}


def ema_decay(config: ml_collections.ConfigDict, updates: jax.Array) -> jax.Array:
    """Return the decay: linear from ema_start to ema_end over ema_steps updates, then constant."""
    c = config.data2vec
    remaining = jnp.clip(1 - updates / c.ema_steps, 0, 1)
    return c.ema_end - (c.ema_end - c.ema_start) * remaining


def health(
    config: ml_collections.ConfigDict,
    sums: dict[str, jax.Array],
    masked: jax.Array,
    updates: jax.Array,
) -> dict[str, jax.Array]:
    """Return the scalars to log: fairseq's target_var and pred_var, which are standard deviations.

    They are taken over the masked frames of the global batch, with 1e-6 added to the variance, and
    averaged over channels.
    """

    def deviation(name: str) -> jax.Array:
        first, second = sums[f"{name}_1"], sums[f"{name}_2"]
        variance = (second - jnp.square(first) / masked) / (masked - 1)
        return jnp.sqrt(jnp.maximum(variance, 0) + 1e-6).mean()

    return {
        "target_std": deviation("target"),
        "prediction_std": deviation("prediction"),
        "ema_decay": ema_decay(config, updates),
    }


def collapse(config: ml_collections.ConfigDict, metrics: dict[str, float], step: int) -> str | None:
    """Return what is wrong with these metrics, or None.

    The guards are fairseq's; they begin after step guard_after.
    """
    c = config.data2vec
    if step <= c.guard_after:
        return None
    for name, floor in (("target_std", c.min_target_std), ("prediction_std", c.min_prediction_std)):
        if metrics[name] < floor:
            return (
                f"{name} is {metrics[name]:.4f}, below data2vec.min_{name} = {floor}: the "
                "representation has collapsed. A lower optim.learning_rate, a longer warm-up or a "
                "larger batch usually helps; resume from a checkpoint before the collapse"
            )
    return None
