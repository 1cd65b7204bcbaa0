"""Several targets at once: the loss and its gradients against PyTorch, metrics, guards, bits."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import torch

from musicssl.exchange import state_dict
from musicssl.model.encoder import Encoder, make_encoder
from musicssl.objectives import hubert, random_projection
from musicssl.objectives.masking import Batch, SpanMask
from musicssl.runtime import sharding
from musicssl.training import loop, step
from tests.support import torch_models
from tests.support.hubert_small import FINAL, PENALTY, config_of, kaldi_mfcc
from tests.test_audio import log_mel_by_definition

RATES = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop"),
    0.0,
)
CODES = {"mfcc": 11, "mel_1": 6, "mel_2": 6}
WEIGHTS = {"mfcc": 0.25, "mel_1": 1.5, "mel_2": 1.5}  # of 3 for the two codebooks of mel
LEAVES = {
    "teacher__feature": "",
    "teacher__targets": "mfcc:kmeans:11,mel:random:2x6",
    "teacher__weights": (0.25, 3.0),
}
MASKED = (13, 9)  # frames of 24, in two clips


def several(**leaves: object) -> ml_collections.ConfigDict:
    return config_of(**LEAVES | leaves)


class Case:
    """An encoder, three heads and their quantisers, all random, with labels made by NumPy."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.model = torch_models.make("hubert", **torch_models.SMALL | RATES)
        self.audio = 0.1 * torch_models.noise(8_000, clips=2)
        self.projections = {name: torch.nn.Linear(48, FINAL) for name in CODES}
        self.classes = {name: torch.nn.Parameter(torch.rand(k, FINAL)) for name, k in CODES.items()}
        self.encoder, params = torch_models.ours(self.model)
        self.params = {"encoder": params, "head": {name: self.head(name) for name in CODES}}

        # Quantisers, and each frame's code by their definitions.
        mfcc = kaldi_mfcc(self.audio, 13)  # [b, t, 39]
        codebook = (mfcc.reshape(-1, 39)[::4][:11] + rng.normal(0, 1, (11, 39))).astype("f4")
        self.quantizers = {"mfcc": {"codebook": codebook}}
        distance = np.square(mfcc[:, :, None] - codebook).sum(-1)
        self.labels = {"mfcc": distance.argmin(-1)}
        bands = np.stack([log_mel_by_definition(clip, 80)[::2][:24] for clip in self.audio])
        standard = (bands - bands.mean((0, 1))) / bands.std((0, 1))
        for name in ("mel_1", "mel_2"):
            settings = random_projection.Settings(name, 6, seed=0, dimensions=16)
            projection, rows = random_projection.draw(settings, 80)
            self.quantizers[name] = {
                "mean": bands.mean((0, 1)).astype("f4"),
                "deviation": bands.std((0, 1)).astype("f4"),
                "projection": projection,
                "codebook": rows,
            }
            projected = standard @ projection
            projected /= np.linalg.norm(projected, axis=-1, keepdims=True)
            self.labels[name] = np.square(projected[:, :, None] - rows).sum(-1).argmin(-1)

        # Masks.
        frames = np.stack([rng.permutation(24)[: max(MASKED)] for _ in MASKED])
        valid = np.arange(max(MASKED)) < np.array(MASKED)[:, None]
        self.mask = np.zeros((2, 24), bool)
        for clip, count in enumerate(MASKED):
            self.mask[clip, frames[clip, :count]] = True
        mask = SpanMask(*map(jnp.asarray, (self.mask, frames, valid)))
        sound = jnp.asarray(self.audio)
        self.batch = Batch(sound, sound, mask, jnp.float32(sum(MASKED)), jnp.float32(2))

    def head(self, name: str, of: str = "data") -> dict:
        """The head's parameters in our tree, or their gradients."""
        projection, classes = self.projections[name], self.classes[name]
        return {
            "projection": {
                "kernel": getattr(projection.weight, of).numpy().T,
                "bias": getattr(projection.bias, of).numpy(),
            },
            "embeddings": getattr(classes, of).numpy(),
        }


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.fixture(scope="module")
def expected(case) -> dict[str, float]:
    """Each target's cross entropy and accuracies, and the loss; gradients are in the modules."""
    model, found = case.model, {}
    stem = model.feature_extractor(torch.from_numpy(case.audio)).transpose(1, 2)
    z = model.feature_projection(stem)
    masked = torch.from_numpy(case.mask)
    z = torch.where(masked[..., None], model.masked_spec_embed, z)
    output = model.encoder(z).last_hidden_state
    loss = PENALTY * stem.pow(2).mean()
    for name, weight in WEIGHTS.items():
        projected = case.projections[name](output)[:, :, None]
        logits = torch.cosine_similarity(projected, case.classes[name], dim=-1) / 0.1
        wanted = torch.from_numpy(case.labels[name])
        entropy = torch.nn.functional.cross_entropy(logits[masked], wanted[masked])
        loss = loss + weight * entropy
        right = logits.argmax(-1) == wanted
        found[f"cross_entropy/{name}"] = entropy.item()
        found[f"masked_accuracy/{name}"] = right[masked].float().mean().item()
        found[f"unmasked_accuracy/{name}"] = right[~masked].float().mean().item()
    loss.backward()
    return found | {"loss": loss.item(), "penalty": PENALTY * stem.pow(2).mean().item()}


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(encoder: Encoder, params: dict, quantizers: dict, batch: Batch) -> tuple:
    rngs = {name: jax.random.key(0) for name in ("dropout", "layerdrop")}

    def loss(params: dict) -> tuple:
        return hubert.loss(encoder, several(), params, {"quantizers": quantizers}, batch, rngs)

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.fixture(scope="module")
def measured(case) -> tuple:
    """Our loss, sums for health, and gradients."""
    encoder = case.encoder.clone(feature_grad_mult=1.0)
    (value, sums), gradients = loss_and_gradients(encoder, case.params, case.quantizers, case.batch)
    return value, sums, gradients


def test_the_loss_is_the_weighted_sum_of_the_targets(expected, measured):
    assert float(measured[0]) == pytest.approx(expected["loss"], rel=1e-4)


def test_each_target_has_labels_of_its_own(case, measured):
    for name, labels in case.labels.items():
        counts = np.bincount(labels.ravel(), minlength=CODES[name])
        assert (counts > 0).sum() > 3
        np.testing.assert_array_equal(measured[1][name]["labels"], counts)
    assert (case.labels["mel_1"] != case.labels["mel_2"]).any()


def test_gradients(case, expected, measured):
    tensors = {name: x.grad.numpy() for name, x in case.model.named_parameters()}
    theirs = {"encoder": state_dict.from_tensors(case.encoder, tensors, "")}
    theirs["head"] = {name: case.head(name, "grad") for name in CODES}
    pairs = jax.tree.map(lambda *x: x, measured[2], theirs)
    for path, (ours, gradient) in jax.tree_util.tree_leaves_with_path(
        pairs, is_leaf=lambda x: isinstance(x, tuple)
    ):
        name = jax.tree_util.keystr(path)
        # Softmax does not see the bias of the keys: its gradient is rounding noise.
        scale = 1.0 if "k_proj" in name and "bias" in name else np.abs(gradient).max()
        assert scale > 1e-6, name
        assert np.abs(ours - gradient).max() < 1e-4 * scale, name


def test_what_is_logged_of_each_target(case, expected, measured):
    masked = jnp.float32(sum(MASKED))
    health = hubert.health(several(), measured[1], masked, jnp.int32(0))
    health = {name: float(x) for name, x in health.items()}
    for name, value in expected.items():
        if "/" in name:
            assert health[name] == pytest.approx(value, rel=1e-4), name
    whole = expected["loss"] - expected["penalty"]
    assert health["cross_entropy"] == pytest.approx(whole, rel=1e-4)
    for name, codes in CODES.items():
        share = np.bincount(case.labels[name].ravel(), minlength=codes) / 48
        used = share[share > 0]
        assert health[f"code_usage/{name}"] == pytest.approx(len(used) / codes)
        perplexity = np.exp(-np.sum(used * np.log(used)))
        assert health[f"label_perplexity/{name}"] == pytest.approx(perplexity, rel=1e-5)
        assert health[f"majority/{name}"] == pytest.approx(share.max())
    assert "masked_accuracy" not in health


@pytest.mark.parametrize("flat", [None, *CODES])
def test_degenerate_labels_of_any_target_stop_the_run(flat):
    metrics = {f"label_perplexity/{name}": 1.0 if name == flat else 5.0 for name in CODES}
    reason = hubert.collapse(several(), metrics, 10)
    if flat is None:
        assert reason is None
    else:
        assert f"the {flat} labels' perplexity is 1.00, below hubert.min_label" in reason
        assert "\n" not in reason


def test_a_list_of_one_is_the_feature_alone():
    """In the names of its parameters, so that it can take up the other's checkpoints."""
    alone, listed = config_of(), config_of(teacher__feature="", teacher__targets="mfcc:kmeans:11")
    assert step.state_shapes(alone) == step.state_shapes(listed)
    encoder = make_encoder(alone)
    assert hubert.head(encoder, alone) == hubert.head(encoder, listed)


def test_targets_that_cannot_be_made_are_refused_before_anything_is_built():
    with pytest.raises(ValueError, match=r"teacher\.targets names mel twice"):
        loop.check(several(teacher__targets="mel,mel"), sharding.make_mesh())


def test_heads_differ_in_their_initial_values():
    config = several()
    encoder = make_encoder(config)
    params = hubert.head(encoder, config).init(jax.random.key(0), jnp.zeros((1, encoder.width)))
    heads = params["params"]
    assert {name: x["embeddings"].shape for name, x in heads.items()} == {
        name: (codes, FINAL) for name, codes in CODES.items()
    }
    kernels = [heads[name]["projection"]["kernel"] for name in CODES]
    assert abs(np.corrcoef(kernels[1].ravel(), kernels[2].ravel())[0, 1]) < 0.1
