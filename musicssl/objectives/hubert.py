"""HuBERT: predict the cluster of each masked frame.

arXiv:2106.07447, in the form of fairseq's hubert with its base LibriSpeech recipe, which
musicHuBERT adopts (arXiv:2307.05161). The labels are a function of the batch's audio, computed
within the step: for each frame, the codebook row nearest to its features. The features are MFCCs
with differences (iteration 1), or a layer of a frozen encoder (iteration 2). There are no label
files.

With several targets (see targets.py), each has a codebook and a head, and the loss is the weighted
sum of their cross entropies, as fairseq sums those of several label files. The names of parameters
and metrics then contain the target's name; with one target they do not.

Deviation from fairseq: there are K classes, whereas fairseq's dictionary adds four special symbols
that take part in the softmax and are never right. The penalty and the counts are those of the
global batch.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import ml_collections

from musicssl import audio, spectra
from musicssl.model.encoder import Encoder, torch_init
from musicssl.objectives import kmeans, random_projection, targets
from musicssl.objectives.masking import Batch
from musicssl.objectives.objective import Tree


@flax.struct.dataclass
class FrozenEncoder:
    """The encoder that gives iteration 2 its features, and which hidden state they are."""

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


class _Heads(nn.Module):
    """A head for each of several targets: [..., d] -> {name: [..., k]}."""

    targets: tuple[targets.Target, ...]
    final_dim: int
    temperature: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        settings = self.final_dim, self.temperature, self.dtype
        return {t.name: _Head(t.clusters, *settings, name=t.name)(x) for t in self.targets}


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
    """Return no state, since the teacher does not change."""
    return {}


def head(encoder: Encoder, config: ml_collections.ConfigDict) -> nn.Module:
    """Return the head that predicts the labels: one target's logits, or {name: logits} of several.

    Raises:
      ValueError: the targets that the configuration names cannot be made.
    """
    c, predicted = config.hubert, targets.of(config)
    if len(predicted) == 1:
        return _Head(predicted[0].clusters, c.final_dim, c.temperature, encoder.dtype)
    return _Heads(predicted, c.final_dim, c.temperature, encoder.dtype)


def features(
    config: ml_collections.ConfigDict, name: str, frozen: Tree, waveform: jax.Array
) -> jax.Array:
    """Return the features that a codebook quantises, one row per frame: [b, n] -> [b, t, f].

    Args:
      name: one of targets.FEATURES.
      frozen: has the "encoder" if the feature is one of its layers.
    """
    if name != "layer":
        return spectra.feature(name, config.teacher.ceps).apply(waveform)
    teacher: FrozenEncoder = frozen["encoder"]
    encoder_input = audio.normalize(waveform) if teacher.normalize else waveform
    states: Any = teacher.encoder.apply({"params": teacher.params}, encoder_input)
    return states.hidden[teacher.layer]


def labels(
    config: ml_collections.ConfigDict, teacher: Tree, waveform: jax.Array
) -> dict[str, jax.Array]:
    """Return the code of each encoder frame, by the targets' names: [b, n] -> {name: [b, t]}.

    Args:
      teacher: has the arrays of each target's quantiser under "quantizers" and its name, and the
        "encoder" if a feature is one of its layers.
    """
    predicted = targets.of(config)
    names = dict.fromkeys(target.feature for target in predicted)
    quantised = {name: features(config, name, teacher, waveform) for name in names}
    codes = {}
    for target in predicted:
        quantizer, rows = teacher["quantizers"][target.name], quantised[target.feature]
        if target.quantizer == "random":
            codes[target.name] = random_projection.assign(quantizer, rows)
        else:
            codes[target.name] = kmeans.assign(quantizer["codebook"], rows)
    return codes


def loss(
    encoder: Encoder,
    config: ml_collections.ConfigDict,
    params: Tree,
    teacher: Tree,
    batch: Batch,
    rngs: dict[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the targets' weighted cross entropies, in nats, plus the feature penalty.

    A cross entropy is the average over masked frames, and only these frames' logits are computed.
    The penalty is the mean square of the stem's output, before the layer norm.

    Returns:
      This part's share of the global batch's loss, and sums for `health`.
    """
    apply: Callable[..., Any] = encoder.apply
    student = {"params": params["encoder"]}
    predicted = targets.of(config)

    # The labels, which depend on no parameter of the student.
    with jax.named_scope("labels"):
        codes = jax.lax.stop_gradient(labels(config, teacher, batch.waveform))  # {name: [b, t]}

    # The student reads the masked clips.
    u = apply(student, batch.encoder_input, method="stem")
    share = batch.encoder_input.shape[0] / batch.clips
    penalty = jnp.square(u.astype(jnp.float32)).mean() * share
    z = apply(student, u, method="project")
    z = apply(student, z, batch.mask.mask, rngs=rngs, method="mask")
    output = apply(student, z, train=True, rngs=rngs, method="contextualize").hidden[-1]

    def classify(y: jax.Array) -> dict[str, jax.Array]:
        with jax.named_scope("head"):
            logits: Any = head(encoder, config).apply({"params": params["head"]}, y)
        return logits if len(predicted) > 1 else {predicted[0].name: logits}

    # The negative log-likelihood of the labels of masked frames, and the sums for `health`.
    at = batch.mask.frames  # [b, m]
    logits = classify(jnp.take_along_axis(output, at[..., None], axis=1))  # {name: [b, m, k]}
    sums: dict[str, Any] = {"penalty": penalty}
    for target in predicted:
        wanted = jnp.take_along_axis(codes[target.name], at, axis=1)  # [b, m]
        own = logits[target.name]
        label_logit = jnp.take_along_axis(own, wanted[..., None], axis=2)[..., 0]  # [b, m]
        loss_by_frame = jax.nn.logsumexp(own, axis=-1) - label_logit
        hit = (own.argmax(-1) == wanted) & batch.mask.valid
        sums[target.name] = {
            "cross_entropy": jnp.sum(jnp.where(batch.mask.valid, loss_by_frame, 0)) / batch.masked,
            "right": hit.sum().astype(jnp.float32),
            "labels": jnp.zeros(target.clusters).at[codes[target.name]].add(1.0),  # [k]
        }
    if config.hubert.unmasked_accuracy:
        unmasked = ~batch.mask.mask
        sums["unmasked"] = unmasked.sum().astype(jnp.float32)
        for name, own in classify(output).items():
            hit = (own.argmax(-1) == codes[name]) & unmasked
            sums[name]["unmasked_right"] = hit.sum().astype(jnp.float32)
    total = _cross_entropy(predicted, sums) + config.hubert.feature_penalty * penalty
    return total, jax.lax.stop_gradient(sums)


def _cross_entropy(predicted: tuple[targets.Target, ...], sums: dict[str, Any]) -> jax.Array:
    """Return the weighted sum of the targets' cross entropies."""
    weighted = [target.weight * sums[target.name]["cross_entropy"] for target in predicted]
    return functools.reduce(jnp.add, weighted)


def after_update(
    config: ml_collections.ConfigDict, params: Tree, teacher: Tree, updates: jax.Array
) -> Tree:
    """Return the teacher unchanged: no part of it follows the student."""
    return teacher


def health(
    config: ml_collections.ConfigDict,
    sums: dict[str, Any],
    masked: jax.Array,
    updates: jax.Array,
) -> dict[str, jax.Array]:
    """Return the scalars to log.

    code_usage is the share of the codes that occur among this batch's labels, label_perplexity the
    exponential of the labels' entropy, and majority the most frequent label's share, which is the
    accuracy of a constant answer. With several targets, each has its own values, under NAME/TARGET,
    and cross_entropy is their weighted sum.
    """
    predicted = targets.of(config)
    scalars = {
        "feature_penalty": sums["penalty"],
        "cross_entropy": _cross_entropy(predicted, sums),
    }
    for target in predicted:
        own, name = sums[target.name], _logged_as(predicted, target)
        share = own["labels"] / own["labels"].sum()
        scalars |= {
            name("cross_entropy"): own["cross_entropy"],
            name("masked_accuracy"): own["right"] / masked,
            name("code_usage"): (share > 0).mean(),
            name("label_perplexity"): jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share))),
            name("majority"): share.max(),
        }
        if "unmasked" in sums:
            scalars[name("unmasked_accuracy")] = own["unmasked_right"] / sums["unmasked"]
    return scalars


def _logged_as(
    predicted: tuple[targets.Target, ...], target: targets.Target
) -> Callable[[str], str]:
    """Return what a target adds to the names of its scalars; "" if there is only one target."""
    return str if len(predicted) == 1 else lambda name: f"{name}/{target.name}"


def collapse(config: ml_collections.ConfigDict, metrics: dict[str, float], step: int) -> str | None:
    """Return what is wrong with the labels of a target since the last log, or None."""
    least, predicted = config.hubert.min_label_perplexity, targets.of(config)
    for target in predicted:
        found = metrics[_logged_as(predicted, target)("label_perplexity")]
        if found < least:
            whose = "the labels'" if len(predicted) == 1 else f"the {target.name} labels'"
            return (
                f"{whose} perplexity is {found:.2f}, below hubert.min_label_perplexity = {least}: "
                "nearly every frame has the same label, so there is nothing to learn. Look at "
                "codebook.png in the workdir and at the audio, and fit the codebook again to more, "
                "or more varied, audio"
            )
    return None
