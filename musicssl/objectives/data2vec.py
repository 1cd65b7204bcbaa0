"""data2vec 1.0 for audio: predict an EMA teacher's latent targets at masked frames.

arXiv:2202.03555, in the form of fairseq's data2vec_audio with its base LibriSpeech recipe, which
music2vec takes over (arXiv:2307.05161). The teacher is the transformer alone: it reads the
student's own unmasked features and shares its positional convolution.

Named deviations from fairseq: the teacher averages the float32 parameters (fairseq averages the
fp16 copies), and steps once per optimizer update, also with accumulated gradients (fairseq steps
it once a micro-batch). Clips are normalised as they are cropped (fairseq normalises whole files),
and LayerDrop draws once a step (fairseq once a step on each GPU).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from musicssl.model.encoder import Encoder, torch_init
from musicssl.model.stem import NORM_EPSILON
from musicssl.objectives.masking import Batch

Tree = dict


def init(
    key: jax.Array, encoder: Encoder, config: ml_collections.ConfigDict, samples: int
) -> tuple[Tree, Tree]:
    """Initial parameters {"encoder", "head"} and teacher {"encoder"}.

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
    """The teacher before any update: the student's own values."""
    return {"encoder": averaged(params["encoder"])}


def head(encoder: Encoder) -> nn.Dense:
    """The linear prediction of the targets."""
    values = torch_init(encoder.width)
    return nn.Dense(encoder.width, dtype=encoder.dtype, kernel_init=values, bias_init=values)


def averaged(encoder_params: Tree) -> Tree:
    """The part that the teacher averages: blocks and the norm before them.

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
    """Squared error summed over channels, over sqrt(width), averaged over masked frames.

    Returns:
      This part's share of the global batch's loss, and sums over masked frames for `health`.
    """
    apply = encoder.apply
    student = {"params": params["encoder"]}
    features = apply(student, batch.audio, method="stem")
    z = apply(student, features, method="project")  # [b, t, d]
    with jax.named_scope("teacher"):
        target = targets(encoder, config, params, teacher, jax.lax.stop_gradient(z))

    masked = apply(student, z, batch.mask.mask, rngs=rngs, method="mask")
    output = apply(student, masked, train=True, rngs=rngs, method="contextualize").hidden[-1]
    with jax.named_scope("head"):
        prediction = head(encoder).apply({"params": params["head"]}, output).astype(jnp.float32)

    weight = batch.mask.mask[..., None].astype(jnp.float32)  # [b, t, 1]
    total = jnp.sum(weight * jnp.square(prediction - target)) / math.sqrt(encoder.width)
    sums = {
        f"{name}_{power}": jnp.sum(weight * x**power, axis=(0, 1))  # [d]
        for name, x in (("target", target), ("prediction", prediction))
        for power in (1, 2)
    }
    return total / batch.masked, jax.lax.stop_gradient(sums)


def targets(
    encoder: Encoder, config: ml_collections.ConfigDict, params: Tree, teacher: Tree, z: jax.Array
) -> jax.Array:
    """The mean of the top blocks' FFN outputs, each standardised per clip and channel over time.

    [b, t, d] -> float32 [b, t, d] (data2vec, section 3.3).
    """
    shared = {k: v for k, v in params["encoder"].items() if k not in teacher["encoder"]}
    variables = jax.lax.stop_gradient({"params": shared | teacher["encoder"]})
    ffn = encoder.apply(variables, z, method="contextualize").ffn
    top = ffn[encoder.layers - config.data2vec.top_layers :]
    return sum(standardise_over_time(x) for x in top) / len(top)


def standardise_over_time(x: jax.Array) -> jax.Array:
    """Instance norm without parameters, in float32."""
    x = x.astype(jnp.float32)
    mean = x.mean(axis=1, keepdims=True)  # [b, 1, d]
    variance = jnp.square(x - mean).mean(axis=1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + NORM_EPSILON)


def after_update(
    config: ml_collections.ConfigDict, params: Tree, teacher: Tree, updates: jax.Array
) -> Tree:
    """The teacher after `updates` optimizer updates: decay * teacher + (1 - decay) * student."""
    decay = ema_decay(config, updates)
    student = averaged(params["encoder"])
    mix = jax.tree.map(lambda t, s: t + (1 - decay) * (s - t), teacher["encoder"], student)
    return {"encoder": mix}


def ema_decay(config: ml_collections.ConfigDict, updates: jax.Array) -> jax.Array:
    """Linear from ema_start to ema_end over ema_steps updates, then constant."""
    c = config.data2vec
    remaining = jnp.clip(1 - updates / c.ema_steps, 0, 1)
    return c.ema_end - (c.ema_end - c.ema_start) * remaining


def health(
    config: ml_collections.ConfigDict,
    sums: dict[str, jax.Array],
    masked: jax.Array,
    step: jax.Array,
) -> dict[str, jax.Array]:
    """Scalars to log: fairseq's target_var and pred_var, which are standard deviations.

    The deviation over the masked frames of the global batch, with 1e-6 added to the variance,
    averaged over channels.
    """

    def deviation(name: str) -> jax.Array:
        first, second = sums[f"{name}_1"], sums[f"{name}_2"]
        variance = (second - jnp.square(first) / masked) / (masked - 1)
        return jnp.sqrt(jnp.maximum(variance, 0) + 1e-6).mean()

    return {
        "target_std": deviation("target"),
        "prediction_std": deviation("prediction"),
        "ema_decay": ema_decay(config, step),
    }


def collapse(config: ml_collections.ConfigDict, metrics: dict[str, float], step: int) -> str | None:
    """What is wrong with these metrics, or None (fairseq's guards, tested after guard_after)."""
    c = config.data2vec
    if step <= c.guard_after:
        return None
    for name, floor in (("target_std", c.min_target_std), ("prediction_std", c.min_prediction_std)):
        if metrics[name] < floor:
            return (
                f"{name} is {metrics[name]:.4f}, below data2vec.min_{name} = {floor}: the "
                "representation has collapsed. A lower optim.learning_rate, a longer warm-up or a "
                "larger batch usually helps; resume from a checkpoint before the fall"
            )
    return None
