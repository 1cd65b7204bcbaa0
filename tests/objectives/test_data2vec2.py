"""data2vec 2.0's loss, gradients and teacher against PyTorch, and what its masks hide."""

import copy
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util

from configs import music2vec2
from musicssl import audio
from musicssl.exchange import state_dict
from musicssl.model.encoder import Encoder
from musicssl.objectives import data2vec, data2vec2, masking
from musicssl.objectives.masking import Batch
from musicssl.training import step
from tests.objectives.test_data2vec import RATES, changed, rngs
from tests.support import tiny, torch_models

TOP = 2  # of three blocks
CLIPS, COPIES, FRAMES, MASKED = 3, 2, 24, 14
DECODER = {"layers": 3, "width": 16, "kernel": 5, "groups": 4, "dropout": 0.0, "noise": 0.3}


class TorchDecoder(torch.nn.Module):
    """fairseq's Decoder1d as it is described: convolution, norm without parameters, GELU, sum."""

    def __init__(self) -> None:
        super().__init__()
        widths = [48, *[DECODER["width"]] * DECODER["layers"]]
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv1d(a, b, DECODER["kernel"], padding=2, groups=DECODER["groups"])
            for a, b in itertools.pairwise(widths)
        )
        self.projection = torch.nn.Linear(widths[-1], 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[t, 48] -> [t, 48]"""
        for conv in self.convs:
            y = conv(x.T).T
            y = torch.nn.functional.gelu(torch.nn.functional.layer_norm(y, y.shape[-1:]))
            x = y + x if y.shape == x.shape else y
        return self.projection(x)

    def tree(self, gradients: bool = False) -> dict:
        """The parameters, or their gradients, as ours are named."""

        def values(layer: torch.nn.Module) -> dict[str, np.ndarray]:
            weight, bias = (x.grad if gradients else x for x in (layer.weight, layer.bias))
            weight, bias = weight.detach().numpy(), bias.detach().numpy()
            return {"kernel": weight.transpose(*range(weight.ndim)[::-1]), "bias": bias}

        layers = {f"conv_{i}": values(conv) for i, conv in enumerate(self.convs)}
        return layers | {"projection": values(self.projection)}


class Case:
    """A student, a decoder and a teacher, all random and all different, with a masked batch."""

    def __init__(self) -> None:
        small = torch_models.SMALL | RATES | {"num_hidden_layers": 3}
        self.model = torch_models.make("data2vec", **small)
        self.decoder = TorchDecoder()
        self.teacher_model = copy.deepcopy(self.model)
        for parameter in self.teacher_model.encoder.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        self.audio = torch_models.noise(8_000, clips=CLIPS)
        rng = np.random.default_rng(0)
        order = rng.permuted(np.tile(np.arange(FRAMES), (CLIPS, COPIES, 1)), axis=-1)
        self.mask = order < MASKED  # [b, k, t]
        self.noise = rng.standard_normal((CLIPS * COPIES, FRAMES, 48), np.float32)
        self.encoder, params = torch_models.ours(self.model)
        self.params = {"encoder": params, "head": self.decoder.tree()}
        teacher = torch_models.ours(self.teacher_model)[1]
        self.teacher = {"encoder": data2vec2.averaged(teacher)}
        self.config = music2vec2.get_config()
        self.config.data2vec.top_layers = TOP
        self.config.mask.probability = MASKED / FRAMES
        self.config.decoder.update(DECODER)

        self.once = jax.jit(self.loss)  # for all tests that ask for no gradient

    def loss(
        self,
        params: dict,
        teacher: dict,
        audio: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        seed: int = 0,
    ) -> tuple:
        """Our loss and sums; of the case's clips and masks where none are given."""
        audio, mask = (
            jnp.asarray(y if x is None else x) for x, y in ((audio, self.audio), (mask, self.mask))
        )
        listed = jnp.argsort(~mask, axis=-1, stable=True)
        batch = Batch(audio, None, masking.SpanMask(mask, listed, None), mask.sum(), CLIPS)
        return data2vec2.loss(self.encoder, self.config, params, teacher, batch, rngs(seed))


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


class Expected:
    """The objective as data2vec2.py computes it, copy by copy, in PyTorch."""

    def __init__(self, case: Case) -> None:
        model = case.model
        model.zero_grad()
        case.decoder.zero_grad()
        features = model.feature_extractor(torch.from_numpy(case.audio)).transpose(1, 2)
        z = model.feature_projection(features)[0]
        targets = self.teacher_targets(case, z.detach())
        self.targets, self.predictions = [], []
        for clip in range(CLIPS):
            for number, mask in enumerate(torch.from_numpy(case.mask[clip])):
                noise = torch.from_numpy(case.noise[COPIES * clip + number])
                self.predictions.append(self.predicted(case, z[clip], mask, noise)[mask])
                self.targets.append(targets[clip][mask])
        self.targets, self.predictions = torch.cat(self.targets), torch.cat(self.predictions)
        errors = ((self.predictions - self.targets) ** 2).sum() / math.sqrt(48)
        self.loss = errors / len(self.targets)
        self.loss.backward()

    @staticmethod
    def predicted(
        case: Case, z: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """What the student and the decoder make of one copy of a clip: [t, d] -> [t, d]."""
        encoder = case.model.encoder
        zeroed = z * (~mask)[:, None]
        placed = zeroed + encoder.pos_conv_embed(zeroed[None])[0]
        x = encoder.layer_norm(placed[~mask][None])
        for layer in encoder.layers:
            x = layer(x)
        whole = 0.3 * noise
        whole = whole.index_put((torch.nonzero(~mask)[:, 0],), x[0])
        return case.decoder(whole)

    @staticmethod
    def teacher_targets(case: Case, z: torch.Tensor) -> torch.Tensor:
        teacher, seen = case.teacher_model.encoder, []
        hooks = [
            layer.feed_forward.output_dense.register_forward_hook(lambda *x: seen.append(x[2]))
            for layer in teacher.layers
        ]
        with torch.no_grad():
            teacher(z)
        for hook in hooks:
            hook.remove()
        top = [x.transpose(1, 2).float() for x in seen[-TOP:]]  # [b, d, t]
        return (sum(torch.nn.functional.instance_norm(x) for x in top) / TOP).transpose(1, 2)


@pytest.fixture(scope="module")
def expected(case) -> Expected:
    return Expected(case)


@pytest.fixture(scope="module")
def measured(case):
    """Our loss, sums for health, and gradients, with the same noise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data2vec2, "normal", lambda key, shape: case.noise.reshape(shape))
        gradient = jax.jit(jax.value_and_grad(case.loss, has_aux=True))
        (value, sums), gradients = gradient(case.params, case.teacher)
    return value, sums, gradients


def test_loss(expected, measured):
    assert float(measured[0]) == pytest.approx(float(expected.loss.detach()), rel=1e-4)
    assert float(measured[0]) > 1


def test_gradient_of_every_student_parameter(case, expected, measured):
    named = {n: x.grad for n, x in case.model.named_parameters() if n != "masked_spec_embed"}
    assert case.model.masked_spec_embed.grad is None and all(x is not None for x in named.values())
    theirs = {name: x.numpy() for name, x in named.items()} | {"masked_spec_embed": np.zeros(48)}
    tree = state_dict.from_tensors(case.encoder, theirs, "")
    theirs = {"encoder": tree, "head": case.decoder.tree(gradients=True)}
    ours_flat, theirs_flat = (traverse_util.flatten_dict(x, sep="/") for x in (measured[2], theirs))
    assert ours_flat.keys() == theirs_flat.keys()
    assert not ours_flat.pop("encoder/mask_embedding").any()
    for path, ours in ours_flat.items():
        gradient = theirs_flat[path]
        # Softmax does not see the bias of the keys: its gradient is rounding noise.
        scale = 1.0 if "k_proj/bias" in path else np.abs(gradient).max()
        assert scale > 1e-5, path
        assert np.abs(ours - gradient).max() < 1e-4 * scale, path


def test_standard_deviations_are_those_that_fairseq_logs(case, expected, measured):
    masked = jnp.float32(case.mask.sum())
    health = data2vec2.health(case.config, measured[1], masked, jnp.int32(0))
    for name, y in (("target_std", expected.targets), ("prediction_std", expected.predictions)):
        theirs = torch.sqrt(y.detach().var(dim=0) + 1e-6).mean()
        assert float(health[name]) == pytest.approx(float(theirs), rel=1e-4)


def test_no_gradient_reaches_the_teacher(case):
    gradient = jax.jit(jax.grad(lambda t: case.loss(case.params, t)[0]))(case.teacher)
    assert not any(x.any() for x in jax.tree.leaves(gradient))


def test_teacher_averages_all_but_what_it_reads_of_the_student(case):
    shared = {"stem_conv_0", "stem_norm_6", "projection", "projection_norm", "mask_embedding"}
    assert shared <= case.params["encoder"].keys() - case.teacher["encoder"].keys()
    assert {"pos_conv_4", "encoder_norm", "layer_2"} <= case.teacher["encoder"].keys()

    def targets(teacher: dict) -> jax.Array:
        return case.once(case.params, teacher, case.audio, case.mask, 0)[1]["target_1"]

    before = targets(case.teacher)
    for prefix in ("pos_conv_0", "encoder_norm", "layer_2/feed_forward"):
        assert np.abs(targets(changed(case.teacher, prefix)) - before).max() > 1e-2, prefix


def test_teacher_follows_by_fairseqs_formula():
    """EMAModule with get_annealed_rate, in PyTorch, through the end of the ramp."""
    config = music2vec2.get_config()
    config.data2vec.update({"ema_start": 0.5, "ema_end": 0.9, "ema_steps": 4})
    names = ("layer_0", "encoder_norm", "pos_conv_0", "stem_conv_0", "projection")
    rng = np.random.default_rng(0)

    def student() -> dict:
        return {"encoder": {n: {"x": rng.normal(size=7).astype(np.float32)} for n in names}}

    teacher = data2vec2.first_teacher(student())
    assert set(teacher["encoder"]) == set(names[:3])
    theirs = {n: torch.tensor(x["x"]) for n, x in teacher["encoder"].items()}
    for update in range(1, 7):
        params = student()
        teacher = data2vec2.after_update(config, params, teacher, jnp.int32(update))
        decay = 0.9 if update >= 4 else 0.9 - (0.9 - 0.5) * (1 - update / 4)
        for name, x in theirs.items():
            x.mul_(decay).add_(torch.tensor(params["encoder"][name]["x"]), alpha=1 - decay)
            np.testing.assert_allclose(teacher["encoder"][name]["x"], x, rtol=1e-5, atol=1e-6)


def test_decay_of_the_recipe():
    config = music2vec2.get_config()
    for update, decay in ((0, 0.999), (37_500, 0.999495), (75_000, 0.99999), (400_000, 0.99999)):
        ours = 1 - float(data2vec.ema_decay(config, jnp.int32(update)))
        assert ours == pytest.approx(1 - decay, rel=1e-2)  # of float32


def test_the_student_sees_nothing_of_what_a_copy_masks(case):
    """Of audio that only masked frames hear, predictions say nothing; targets do."""
    mask = np.zeros((CLIPS, COPIES, FRAMES), bool)
    mask[..., FRAMES - MASKED :] = True
    audio = case.audio.copy()
    first = 320 * (FRAMES - MASKED - 1) + 400  # sample after the last that a visible frame hears
    audio[:, first:] += 1.0
    told = [case.once(case.params, case.teacher, x, mask, 0)[1] for x in (case.audio, audio)]
    np.testing.assert_allclose(told[0]["prediction_1"], told[1]["prediction_1"], atol=1e-4)
    assert np.abs(told[0]["target_1"] - told[1]["target_1"]).max() > 0.1


def test_dropout_and_noise_follow_their_keys(case):
    given = case.params, case.teacher, case.audio, case.mask
    losses = [float(case.once(*given, seed)[0]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]  # by the noise alone: no dropout here


def test_bfloat16_gives_nearly_the_same_loss_in_float32(case):
    given = case.params, case.teacher, case.audio, case.mask
    loss = case.once(*given, 0)[0]
    rounded = copy.copy(case)
    rounded.encoder = case.encoder.clone(dtype=jnp.bfloat16)
    rough, sums = jax.jit(rounded.loss)(*given, 0)
    assert {x.dtype for x in (rough, *sums.values())} == {jnp.dtype("float32")}
    assert float(rough) != float(loss)
    assert float(rough) == pytest.approx(float(loss), rel=0.02)


def test_a_step_of_the_base_configuration_keeps_the_shapes_of_its_state():
    """8 copies of 16 clips in bfloat16, traced, with fewer blocks."""
    config = music2vec2.get_config()
    config.encoder.layers = config.data2vec.top_layers = 1
    state = step.state_shapes(config)
    clips = jax.ShapeDtypeStruct((16, audio.crop_samples(1488)), jnp.int16)
    after, metrics = jax.eval_shape(functools.partial(step.update, config), state, {}, clips)
    kinds = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (state, after)]
    assert kinds[0] == kinds[1]
    assert {"loss", "target_std", "prediction_std", "ema_decay"} <= metrics.keys()
    assert sum(x.size for x in jax.tree.leaves(state.params["head"])) == 619_776


def test_noise_is_standard_normal():
    x = np.asarray(data2vec2.normal(jax.random.key(0), (30, 100, 100)), np.float64)
    assert np.isfinite(x).all()
    moments = [np.mean(x**n) for n in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.03)
    assert np.mean(np.abs(x) < 1.96) == pytest.approx(0.95, abs=1e-3)
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), (x[..., 1:], x[..., :-1])):
        assert abs(np.mean(a * b)) < 0.01


def test_frames_are_taken_and_put_back_each_with_the_others_gradient():
    kept = np.random.default_rng(0).permuted(np.tile(np.arange(9) < 4, (5, 1)), axis=1)
    frames = np.argsort(~kept, axis=1, kind="stable")[:, :4]
    x, y = torch_models.noise(5 * 9 * 3, 1).reshape(5, 9, 3), torch_models.noise(60, 1)
    y = y.reshape(5, 4, 3)
    taken, turned = jax.vjp(lambda x: data2vec2.pick(x, frames), x)
    np.testing.assert_array_equal(taken, x[kept].reshape(5, 4, 3))
    put = np.zeros_like(x)
    put[kept] = y.reshape(-1, 3)
    np.testing.assert_array_equal(turned(y)[0], put)
    spread, turned = jax.vjp(lambda y: data2vec2.spread(y, frames, 9), y)
    np.testing.assert_array_equal(spread, put)
    np.testing.assert_array_equal(turned(x)[0], taken)


def test_initial_values():
    config = tiny.copies_config()
    encoder = Encoder(**config.encoder)
    methods = data2vec2, data2vec
    make = jax.jit(lambda key: [x.init(key, encoder, config, 400) for x in methods])
    (params, teacher), (same, _) = make(jax.random.key(0))
    for name, tree in teacher["encoder"].items():
        jax.tree.map(np.testing.assert_array_equal, tree, params["encoder"][name])
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], same["encoder"])
    c, head = config.decoder, params["head"]
    assert set(head) == {"projection", *(f"conv_{i}" for i in range(c.layers))}
    widths = [encoder.width, *[c.width] * (c.layers - 1)]
    fans = {f"conv_{i}": c.kernel * d // c.groups for i, d in enumerate(widths)}
    for name, fan_in in (fans | {"projection": c.width}).items():  # torch's own initial values
        kernel, bound = np.asarray(head[name]["kernel"]), 1 / math.sqrt(fan_in)
        assert kernel.size // kernel.shape[-1] == fan_in
        assert 0.9 * bound < np.abs(kernel).max() <= bound


@pytest.mark.parametrize(
    "leaves, said",
    [
        ({"data2vec.top_layers": 2}, r"data2vec\.top_layers is 2.* encoder\.layers, 1"),
        ({"decoder.layers": 0}, r"decoder\.layers is 0: use 1 or more"),
        ({"decoder.groups": 3}, r"decoder\.groups is 3: choose a divisor of decoder\.width"),
        ({"decoder.dropout": 1.0}, r"decoder\.dropout is 1\.0"),
        ({"decoder.noise": -0.1}, r"decoder\.noise is -0\.1"),
        ({"encoder.input_dropout": 0.1}, r"encoder\.input_dropout is 0\.1, but data2vec2 has none"),
    ],
)
def test_refusals_name_the_field(leaves, said):
    config = tiny.copies_config(leaves)
    with pytest.raises(ValueError, match=said):
        data2vec2.init(jax.random.key(0), Encoder(**config.encoder), config, 400)


def test_span_masks_are_refused():
    config = tiny.copies_config().unlock()
    config.mask = tiny.config().mask
    with pytest.raises(ValueError, match="data2vec2 needs block masks"):
        data2vec2.init(jax.random.key(0), Encoder(**config.encoder), config, 400)
