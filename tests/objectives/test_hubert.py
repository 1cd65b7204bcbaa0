"""HuBERT's loss, logits and gradients against PyTorch on transformers' modules; its labels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util

from musicssl.exchange import state_dict
from musicssl.model.encoder import Encoder, make_encoder
from musicssl.objectives import hubert
from musicssl.objectives.masking import Batch, SpanMask
from musicssl.training import step
from tests.support import torch_models
from tests.support.hubert_small import CLUSTERS, FINAL, PENALTY, STEM_SHARE, config_of, kaldi_mfcc

MASKED = (13, 5, 9)  # frames of 24, in three clips
RATES = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop"),
    0.0,
)
SMALLEST = {  # whose gradient compiles soonest
    "batch_size": 4,
    "data.crop_frames": 24,
    "encoder.layers": 1,
    "encoder.width": 32,
    "encoder.ffn_width": 32,
    "encoder.stem_width": 16,
    "encoder.dropout": 0.0,
    "encoder.attention_dropout": 0.0,
    "encoder.input_dropout": 0.0,
    "encoder.layerdrop": 0.0,
    "mask.probability": 0.45,
    "mask.equal_counts": 0,
}


class GradMultiply(torch.autograd.Function):
    """The identity whose gradient is multiplied."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return STEM_SHARE * gradient


class Case:
    """An encoder, a head and a codebook, all random, with a batch masked unevenly."""

    def __init__(self) -> None:
        self.model = torch_models.make("hubert", **torch_models.SMALL | RATES)
        rng = np.random.default_rng(0)
        self.projection = torch.nn.Linear(48, FINAL)
        self.classes = torch.nn.Parameter(torch.rand(CLUSTERS, FINAL))
        self.audio = 0.1 * torch_models.noise(8_000, clips=3)
        self.frames = np.stack([rng.permutation(24)[: max(MASKED) + 3] for _ in MASKED])
        self.valid = np.arange(max(MASKED) + 3) < np.array(MASKED)[:, None]  # padded, all of them
        self.mask = np.zeros((3, 24), bool)
        for clip, count in enumerate(MASKED):
            self.mask[clip, self.frames[clip, :count]] = True
        encoder, params = torch_models.ours(self.model)
        self.encoder = encoder.clone(feature_grad_mult=STEM_SHARE)
        head = {
            "projection": {
                "kernel": self.projection.weight.detach().numpy().T,
                "bias": self.projection.bias.detach().numpy(),
            },
            "embeddings": self.classes.detach().numpy(),
        }
        self.params = {"encoder": params, "head": head}
        features = kaldi_mfcc(self.audio, 13)  # [b, t, 39]
        flat = features.reshape(-1, 39)
        rows = flat[rng.choice(len(flat), CLUSTERS, replace=False)]
        self.codebook = (rows + rng.normal(0, 1, rows.shape)).astype(np.float32)
        distance = np.square(features[:, :, None] - self.codebook).sum(-1)  # [b, t, k]
        self.labels = distance.argmin(-1)
        nearest = np.sort(distance, -1)
        assert (nearest[..., 1] - nearest[..., 0]).min() > 0.1  # no label hangs on rounding

    def batch(self, **changes: object) -> Batch:
        mask = SpanMask(*map(jnp.asarray, (self.mask, self.frames, self.valid)))
        sound = jnp.asarray(self.audio)
        batch = Batch(sound, sound, mask, jnp.float32(sum(MASKED)), 3)
        return batch._replace(**changes)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


class Expected:
    """The objective as fairseq's hubert.py and hubert_criterion.py have it: contrastive, frame by
    frame, the true class first and then every other."""

    def __init__(self, case: Case) -> None:
        model = case.model
        model.zero_grad()
        case.projection.zero_grad()
        case.classes.grad = None
        stem = model.feature_extractor(torch.from_numpy(case.audio)).transpose(1, 2)
        stem = GradMultiply.apply(stem)
        self.penalty = stem.pow(2).mean()
        z = model.feature_projection(stem)
        masked = z.clone()
        masked[torch.from_numpy(case.mask)] = model.masked_spec_embed
        output = model.encoder(masked).last_hidden_state
        self.logits = torch.cosine_similarity(
            case.projection(output)[:, :, None], case.classes, dim=-1
        ).div(0.1)  # [b, t, k]
        total, self.right = 0.0, {True: 0, False: 0}
        for clip, frame in np.ndindex(3, 24):
            true = case.labels[clip, frame]
            row = self.logits[clip, frame]
            others = torch.cat([row[:true], row[true + 1 :]])
            contest = torch.cat([row[true : true + 1], others])[None]
            hit = bool(contest.argmax() == 0)
            self.right[bool(case.mask[clip, frame])] += hit
            if case.mask[clip, frame]:
                surprise = torch.nn.functional.cross_entropy(
                    contest, torch.zeros(1, dtype=torch.long), reduction="sum"
                )
                total = total + surprise
        count = sum(MASKED)
        self.cross_entropy = total / count
        self.loss = (total + PENALTY * self.penalty * count) / count
        self.loss.backward()


@pytest.fixture(scope="module")
def expected(case) -> Expected:
    return Expected(case)


def rngs(seed: int = 0) -> dict[str, jax.Array]:
    return {name: jax.random.key(seed) for name in ("dropout", "layerdrop")}


def frozen_of(codebook: jax.Array, feature: str = "mfcc") -> dict:
    return {"quantizers": {feature: {"codebook": codebook}}}


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(
    encoder: Encoder, params: dict, codes: jax.Array, batch: Batch, rngs: dict
) -> tuple:
    def loss(params: dict) -> tuple:
        return hubert.loss(encoder, config_of(), params, frozen_of(codes), batch, rngs)

    return jax.value_and_grad(loss, has_aux=True)(params)


def measure(case: Case, batch: Batch) -> tuple:
    """Our loss, sums for health, and gradients."""
    batch = batch._replace(clips=jnp.float32(batch.clips))
    (value, sums), gradients = loss_and_gradients(
        case.encoder, case.params, case.codebook, batch, rngs()
    )
    return value, sums, gradients


@pytest.fixture(scope="module")
def measured(case) -> tuple:
    return measure(case, case.batch())


def test_loss_and_its_parts(case, expected, measured):
    value, sums, _ = measured
    for ours, theirs in (
        (value, expected.loss),
        (sums["mfcc"]["cross_entropy"], expected.cross_entropy),
        (sums["penalty"], expected.penalty),
    ):
        assert float(ours) == pytest.approx(float(theirs.detach()), rel=1e-4)
        assert float(ours) > 1e-3


def test_labels_are_the_nearest_rows_to_kaldis_mfcc(case, measured):
    counts = np.bincount(case.labels.ravel(), minlength=CLUSTERS)
    assert (counts > 0).sum() > 5
    np.testing.assert_array_equal(measured[1]["mfcc"]["labels"], counts)


def test_logits(case, expected):
    config = config_of()
    output = torch_models.noise(48 * 24).reshape(2, 24, 48)
    with torch.no_grad():
        theirs = torch.cosine_similarity(
            case.projection(torch.from_numpy(output))[:, :, None], case.classes, dim=-1
        ).div(0.1)
    head = hubert.head(case.encoder, config)
    ours = jax.jit(head.apply)({"params": case.params["head"]}, output)
    assert ours.shape == (2, 24, CLUSTERS) and ours.dtype == jnp.float32
    assert theirs.std() > 1 and theirs.abs().max() < 10
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_gradient_of_every_parameter(case, expected, measured):
    theirs = {name: x.grad for name, x in case.model.named_parameters()}
    assert all(x is not None for x in theirs.values())
    tree = state_dict.from_tensors(case.encoder, {n: x.numpy() for n, x in theirs.items()}, "")
    projection = {
        "kernel": case.projection.weight.grad.numpy().T,
        "bias": case.projection.bias.grad.numpy(),
    }
    head = {"projection": projection, "embeddings": case.classes.grad.numpy()}
    ours = traverse_util.flatten_dict(measured[2], sep="/")
    theirs = traverse_util.flatten_dict({"encoder": tree, "head": head}, sep="/")
    assert ours.keys() == theirs.keys()
    for path, gradient in theirs.items():
        # Softmax does not see the bias of the keys: its gradient is rounding noise.
        scale = 1.0 if "k_proj/bias" in path else np.abs(gradient).max()
        assert scale > 1e-5, path
        assert np.abs(ours[path] - gradient).max() < 1e-4 * scale, path


def test_the_penalty_weighs_in_the_gradient_of_the_stem(case, expected):
    """Left whole, where a tenth of it is due, it would be seen above."""
    weight = case.model.feature_extractor.conv_layers[0].conv.weight
    total = weight.grad.clone()
    stem = case.model.feature_extractor(torch.from_numpy(case.audio))
    (alone,) = torch.autograd.grad(PENALTY * stem.pow(2).mean(), weight)
    assert (STEM_SHARE * alone).abs().max() > 0.01 * total.abs().max()


def test_what_lies_past_the_masked_frames_does_not_count(case, measured):
    """Padding of `frames` is other frames of the clip: any of them gives the same."""
    frames = case.frames.copy()
    for clip, count in enumerate(MASKED):
        frames[clip, count:] = case.frames[clip, 0]
    batch = case.batch()
    other = measure(case, batch._replace(mask=batch.mask._replace(frames=jnp.asarray(frames))))
    assert float(other[0]) == pytest.approx(float(measured[0]), rel=1e-6)
    assert float(other[1]["mfcc"]["right"]) == float(measured[1]["mfcc"]["right"])
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-4), other[2], measured[2]
    )
    valid = jnp.ones_like(batch.mask.valid)
    counted = measure(case, batch._replace(mask=batch.mask._replace(valid=valid)))
    assert abs(float(counted[0] - measured[0])) > 0.1


def test_accuracies_are_those_of_the_contest(case, expected, measured):
    health = hubert.health(config_of(), measured[1], jnp.float32(sum(MASKED)), jnp.int32(0))
    assert expected.right[True] and expected.right[False]
    masked, unmasked = expected.right[True] / 27, expected.right[False] / (72 - 27)
    assert float(health["masked_accuracy"]) == pytest.approx(masked)
    assert float(health["unmasked_accuracy"]) == pytest.approx(unmasked)


def test_health_of_known_labels():
    own = {"labels": jnp.array([6.0, 3.0, 0.0, 3.0]), "right": jnp.float32(3)}
    sums = {"mfcc": own | {"cross_entropy": jnp.float32(1.5)}, "penalty": jnp.float32(0.25)}
    health = hubert.health(config_of(), sums, jnp.float32(4), jnp.int32(0))
    health = {name: float(x) for name, x in health.items()}
    assert health == pytest.approx(
        {
            "cross_entropy": 1.5,
            "masked_accuracy": 0.75,
            "feature_penalty": 0.25,
            "code_usage": 0.75,
            "label_perplexity": 2**1.5,  # 1.5 bits: 1/2, 1/4, 1/4
            "majority": 0.5,
        }
    )


@pytest.mark.slow
def test_parts_of_a_batch_give_what_the_batch_gives_at_once(case):
    """Clips with unlike masked counts, so that means of parts would not do."""
    config = config_of(**SMALLEST)
    state = jax.jit(lambda: step.init_state(config))()
    keys = step.streams(0, 1)
    clips = np.random.default_rng(0).integers(-9_000, 9_000, (4, 24 * 320 + 80), dtype=np.int16)
    batch = step.prepare(config, keys["mask"], jnp.asarray(clips))
    assert len(set(batch.mask.mask.sum(1).tolist())) > 2
    results = []
    for parts in (1, 4):
        config.accumulate = parts
        accumulate = jax.jit(functools.partial(step.accumulate, config))
        results.append(accumulate(state.params, frozen_of(case.codebook), batch, keys))
    assert float(results[0][0]) > 1
    for whole, summed in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(whole, summed, rtol=1e-3, atol=2e-5)


def test_no_gradient_reaches_the_frozen_encoder(case):
    teacher = hubert.FrozenEncoder(case.params["encoder"], case.encoder, 1, False)
    config = config_of(teacher__feature="layer")
    codes = torch_models.noise(CLUSTERS * 48).reshape(2, CLUSTERS, 48)[0]

    def loss(codes: jax.Array, params: dict) -> jax.Array:
        frozen = {"encoder": dataclasses.replace(teacher, params=params)}
        frozen |= frozen_of(codes, "layer")
        return hubert.loss(case.encoder, config, case.params, frozen, case.batch(), rngs())[0]

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(codes, teacher.params)
    assert not any(x.any() for x in jax.tree.leaves(gradients))


def test_a_class_a_cluster_and_initial_values():
    config = config_of()
    encoder = make_encoder(config)
    head = hubert.head(encoder, config).init(jax.random.key(0), jnp.zeros((1, encoder.width)))
    head = head["params"]
    assert head["embeddings"].shape == (CLUSTERS, FINAL)  # K, not fairseq's K + 4
    assert head["embeddings"].min() >= 0 and 0.9 < head["embeddings"].max() < 1
    bound = 1 / np.sqrt(encoder.width)  # torch.nn.Linear
    assert 0.9 * bound < np.abs(head["projection"]["kernel"]).max() <= bound
    shapes = step.state_shapes(config)
    assert shapes.teacher == {} and shapes.params["head"].keys() == head.keys()


def test_degenerate_labels_stop_the_run(case):
    """Silence has one label."""
    config = config_of()
    reasons = {}
    for name, sound in (("noise", case.audio), ("silence", 0 * case.audio)):
        labels = hubert.labels(config, frozen_of(case.codebook), jnp.asarray(sound))["mfcc"]
        own = dict.fromkeys(("right", "cross_entropy"), jnp.float32(1))
        own["labels"] = jnp.zeros(CLUSTERS).at[labels].add(1.0)
        sums = {"mfcc": own, "penalty": jnp.float32(1)}
        health = hubert.health(config, sums, jnp.float32(9), jnp.int32(0))
        scalars = {n: float(x) for n, x in health.items()}
        reasons[name] = hubert.collapse(config, scalars, 10)
    assert reasons["noise"] is None
    reason = reasons["silence"]
    assert "perplexity is 1.00" in reason and "hubert.min_label_perplexity = 2.0" in reason
    assert "codebook.png" in reason and "fit the codebook again" in reason and "\n" not in reason
