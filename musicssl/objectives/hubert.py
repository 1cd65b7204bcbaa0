"""HuBERT: predict the cluster of each masked frame.

arXiv:2106.07447, in the form of fairseq's hubert with its base LibriSpeech recipe, which
musicHuBERT takes over (arXiv:2307.05161). The labels are a function of the batch's audio, computed
in the step: the nearest row of a codebook to each frame's features. Features are MFCC with
differences (iteration 1), or a layer of a frozen encoder (iteration 2). There are no label files.

Named deviation from fairseq: K classes, where its dictionary adds four special symbols that take
part in the softmax and are never right. Penalty and counts are of the global batch.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import ml_collections

from musicssl import audio
from musicssl.model.encoder import Encoder, torch_init
from musicssl.objectives import kmeans
from musicssl.objectives.masking import Batch
from musicssl.objectives.objective import Tree


@flax.struct.dataclass
class FrozenEncoder:
    """The encoder that iteration 2 takes its features from, and which hidden state they are."""

    params: Tree
    encoder: Encoder = flax.struct.field(pytree_node=False)
    layer: int = flax.struct.field(pytree_node=False)
    normalize: bool = flax.struct.field(pytree_node=False)


class _Head(nn.Module):
    """Cosine similarity to one embedding per class, over a temperature: [..., d] -> [..., k]."""

    classes: int
    final_dim: int
    temperature: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        values = torch_init(x.shape[-1])
        project = nn.Dense(
            self.final_dim,
            dtype=self.dtype,
            kernel_init=values,
            bias_init=values,
            name="projection",
        )
        shape = (self.classes, self.final_dim)
        embeddings = self.param("embeddings", nn.initializers.uniform(1.0), shape)
        y = _unit(project(x).astype(jnp.float32))
        return y @ _unit(embeddings).T / self.temperature


def _unit(x: jax.Array) -> jax.Array:
    """Scale vectors to length one; torch's cosine_similarity has the same floor."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)


def init(
    key: jax.Array, encoder: Encoder, config: ml_collections.ConfigDict, samples: int
) -> tuple[Tree, Tree]:
    """Return the initial parameters {"encoder", "head"}, and the teacher's state."""
    encoder_key, head_key = jax.random.split(key)
    params = {
        "encoder": encoder.init(encoder_key, jnp.zeros((1, samples)))["params"],
        "head": head(encoder, config).init(head_key, jnp.zeros((1, encoder.width)))["params"],
    }
    return params, first_teacher(params)


def first_teacher(params: Tree) -> Tree:
    """Return no state, for the teacher does not change."""
    return {}


def head(encoder: Encoder, config: ml_collections.ConfigDict) -> _Head:
    """Return the head that predicts the labels."""
    c = config.hubert
    return _Head(config.teacher.clusters, c.final_dim, c.temperature, encoder.dtype)


def features(config: ml_collections.ConfigDict, frozen: Tree, waveform: jax.Array) -> jax.Array:
    """Return what the codebook quantises, a row for each encoder frame: [b, n] -> [b, t, f].

    Args:
      frozen: has the "encoder" where config.teacher takes its features from one.
    """
    frames = audio.frame_count(waveform.shape[1])
    if config.teacher.feature in audio.SPECTRAL:
        compute = audio.SPECTRAL[config.teacher.feature]
        return audio.targets_at_50hz(compute(waveform, config.teacher.ceps), frames)
    teacher: FrozenEncoder = frozen["encoder"]
    encoder_input = audio.normalize(waveform) if teacher.normalize else waveform
    states: Any = teacher.encoder.apply({"params": teacher.params}, encoder_input)
    return states.hidden[teacher.layer]


def loss(
    encoder: Encoder,
    config: ml_collections.ConfigDict,
    params: Tree,
    teacher: Tree,
    batch: Batch,
    rngs: dict[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the cross entropy in nats averaged over masked frames, plus the feature penalty.

    Only masked frames' logits are computed. The penalty is the mean square of the stem's output,
    before the layer norm.

    Returns:
      This part's share of the global batch's loss, and sums for `health`.
    """
    apply: Callable[..., Any] = encoder.apply
    student = {"params": params["encoder"]}

    # The labels, which depend on no parameter of the student.
    with jax.named_scope("labels"):
        to_quantise = features(config, teacher, batch.waveform)
        labels = jax.lax.stop_gradient(kmeans.assign(teacher["codebook"], to_quantise))  # [b, t]

    # The student reads the masked clips.
    u = apply(student, batch.encoder_input, method="stem")
    share = batch.encoder_input.shape[0] / batch.clips
    penalty = jnp.square(u.astype(jnp.float32)).mean() * share
    z = apply(student, u, method="project")
    z = apply(student, z, batch.mask.mask, rngs=rngs, method="mask")
    output = apply(student, z, train=True, rngs=rngs, method="contextualize").hidden[-1]

    def classify(y: jax.Array) -> Any:
        with jax.named_scope("head"):
            return head(encoder, config).apply({"params": params["head"]}, y)

    # The negative log-likelihood of the labels of masked frames.
    at = batch.mask.frames  # [b, m]
    logits = classify(jnp.take_along_axis(output, at[..., None], axis=1))  # [b, m, k]
    wanted = jnp.take_along_axis(labels, at, axis=1)  # [b, m]
    label_logit = jnp.take_along_axis(logits, wanted[..., None], axis=2)[..., 0]  # [b, m]
    loss_by_frame = jax.nn.logsumexp(logits, axis=-1) - label_logit
    cross_entropy = jnp.sum(jnp.where(batch.mask.valid, loss_by_frame, 0)) / batch.masked

    # What `health` makes its scalars of.
    hit = (logits.argmax(-1) == wanted) & batch.mask.valid
    sums = {
        "right": hit.sum().astype(jnp.float32),
        "labels": jnp.zeros(config.teacher.clusters).at[labels].add(1.0),  # [k]
        "cross_entropy": cross_entropy,
        "penalty": penalty,
    }
    if config.hubert.unmasked_accuracy:
        unmasked = ~batch.mask.mask
        hit = (classify(output).argmax(-1) == labels) & unmasked
        sums["unmasked_right"] = hit.sum().astype(jnp.float32)
        sums["unmasked"] = unmasked.sum().astype(jnp.float32)
    total = cross_entropy + config.hubert.feature_penalty * penalty
    return total, jax.lax.stop_gradient(sums)


def after_update(
    config: ml_collections.ConfigDict, params: Tree, teacher: Tree, updates: jax.Array
) -> Tree:
    """Return the teacher as it is: nothing of it follows the student."""
    return teacher


def health(
    config: ml_collections.ConfigDict,
    sums: dict[str, jax.Array],
    masked: jax.Array,
    updates: jax.Array,
) -> dict[str, jax.Array]:
    """Return scalars to log.

    code_usage is the share of the codes that are among this batch's labels, label_perplexity the
    exponential of the labels' entropy, and majority the most frequent label's share, which is the
    accuracy of a constant answer.
    """
    share = sums["labels"] / sums["labels"].sum()
    scalars = {
        "cross_entropy": sums["cross_entropy"],
        "masked_accuracy": sums["right"] / masked,
        "feature_penalty": sums["penalty"],
        "code_usage": (share > 0).mean(),
        "label_perplexity": jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share))),
        "majority": share.max(),
    }
    if "unmasked" in sums:
        scalars["unmasked_accuracy"] = sums["unmasked_right"] / sums["unmasked"]
    return scalars


def collapse(config: ml_collections.ConfigDict, metrics: dict[str, float], step: int) -> str | None:
    """Return what is wrong with the labels since the last log, or None."""
    if metrics["label_perplexity"] < config.hubert.min_label_perplexity:
        return (
            f"the labels' perplexity is {metrics['label_perplexity']:.2f}, below "
            f"hubert.min_label_perplexity = {config.hubert.min_label_perplexity}: nearly every "
            "frame has the same label, which teaches nothing. Look at codebook.png in the workdir "
            "and at the audio; fit the codebook again on more, or more varied, audio"
        )
    return None
