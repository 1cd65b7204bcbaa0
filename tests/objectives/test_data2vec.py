"""data2vec's loss, targets, gradients and teacher against PyTorch on transformers' modules."""

import copy
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util

from configs import music2vec
from musicssl.exchange import state_dict
from musicssl.model.encoder import Encoder
from musicssl.objectives import data2vec
from musicssl.objectives.masking import Batch, SpanMask
from tests.support import tiny, torch_models

TOP = 2  # of three blocks
RATES = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop"),
    0.0,
)


class Case:
    """A student, a head and a teacher, all random and all different, with a masked batch."""

    def __init__(self) -> None:
        self.model = torch_models.make(
            "data2vec", **torch_models.SMALL | RATES | {"num_hidden_layers": 3}
        )
        self.head = torch.nn.Linear(48, 48)
        self.blocks = copy.deepcopy(self.model.encoder)  # what the teacher averages, and pos_conv
        for parameter in self.blocks.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        self.audio = torch_models.noise(8_000, clips=3)
        self.mask = np.random.default_rng(0).random((3, 24)) < 0.45
        self.encoder, params = torch_models.ours(self.model)
        head = {"kernel": self.head.weight.detach().numpy().T, "bias": self.head.bias.detach()}
        self.params = {"encoder": params, "head": jax.tree.map(np.asarray, head)}
        teacher_model = copy.deepcopy(self.model)
        teacher_model.encoder = self.blocks
        teacher = torch_models.ours(teacher_model)[1]
        self.teacher = {"encoder": data2vec.averaged(teacher)}
        self.config = music2vec.get_config()
        self.config.data2vec.top_layers = TOP

    def batch(self) -> Batch:
        drawn = SpanMask(jnp.asarray(self.mask), None, None)
        return Batch(jnp.asarray(self.audio), None, drawn, jnp.float32(self.mask.sum()), 3)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


class Expected:
    """The objective as data2vec_audio.py computes it, clip by clip, in PyTorch."""

    def __init__(self, case: Case) -> None:
        model, mask = case.model, torch.from_numpy(case.mask)
        model.zero_grad()
        case.head.zero_grad()
        features = model.feature_extractor(torch.from_numpy(case.audio)).transpose(1, 2)
        z = model.feature_projection(features)[0]
        self.targets = self.teacher_targets(case, z.detach())
        masked = z.clone()
        masked[mask] = model.masked_spec_embed
        self.predictions = case.head(model.encoder(masked).last_hidden_state[mask])
        loss, size = 0.0, 0
        for clip in range(len(mask)):
            wanted = self.targets[clip][mask[clip]]
            got = self.predictions[size : size + len(wanted)]
            loss = loss + ((got - wanted) ** 2).sum() / math.sqrt(48)
            size += len(wanted)
        self.loss = loss / size
        self.loss.backward()

    @staticmethod
    def teacher_targets(case: Case, z: torch.Tensor) -> torch.Tensor:
        teacher = copy.deepcopy(case.blocks)
        teacher.pos_conv_embed = case.model.encoder.pos_conv_embed
        seen = []
        for layer in teacher.layers:
            layer.feed_forward.output_dense.register_forward_hook(lambda *x: seen.append(x[2]))
        with torch.no_grad():
            teacher(z)
            top = [x.transpose(1, 2).float() for x in seen[-TOP:]]  # [b, d, t]
            return (sum(torch.nn.functional.instance_norm(x) for x in top) / TOP).transpose(1, 2)


@pytest.fixture(scope="module")
def expected(case) -> Expected:
    return Expected(case)


@pytest.fixture(scope="module")
def measured(case):
    """Our loss, sums for health, and gradients."""

    def loss(params):
        return data2vec.loss(case.encoder, case.config, params, case.teacher, case.batch(), rngs(0))

    (value, sums), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(case.params)
    return value, sums, gradients


def rngs(seed: int) -> dict[str, jax.Array]:
    return {name: jax.random.key(seed) for name in ("dropout", "layerdrop")}


def ours(case: Case, params: dict, teacher: dict, top: int = TOP, **rates: float) -> jax.Array:
    """The targets of the case's clips."""
    return targets_of(case.encoder.clone(**rates), top, params, teacher, case.audio)


@functools.partial(jax.jit, static_argnums=(0, 1))
def targets_of(
    encoder: Encoder, top: int, params: dict, teacher: dict, audio: np.ndarray
) -> jax.Array:
    config = music2vec.get_config()
    config.data2vec.top_layers = top
    variables = {"params": params["encoder"]}
    features = encoder.apply(variables, audio, method="stem")
    z = encoder.apply(variables, features, method="project")
    return data2vec.targets(encoder, config, params, teacher, z)


def test_loss(expected, measured):
    assert float(measured[0]) == pytest.approx(float(expected.loss.detach()), rel=1e-4)
    assert float(measured[0]) > 1


def test_targets(case, expected):
    targets = ours(case, case.params, case.teacher)
    assert targets.dtype == jnp.float32
    assert expected.targets.abs().max() > 1
    np.testing.assert_allclose(targets, expected.targets, rtol=1e-4, atol=1e-4)


def test_gradient_of_every_student_parameter(case, expected, measured):
    gradients = measured[2]
    theirs = {name: x.grad for name, x in case.model.named_parameters()}
    assert all(x is not None for x in theirs.values())
    tree = state_dict.from_tensors(case.encoder, {n: x.numpy() for n, x in theirs.items()}, "")
    theirs = {"encoder": tree, "head": {"kernel": case.head.weight.grad.numpy().T}}
    theirs["head"]["bias"] = case.head.bias.grad.numpy()
    ours_flat, theirs_flat = (traverse_util.flatten_dict(x, sep="/") for x in (gradients, theirs))
    assert ours_flat.keys() == theirs_flat.keys()
    for path, gradient in theirs_flat.items():
        # Softmax does not see the bias of the keys: its gradient is rounding noise.
        scale = 1.0 if "k_proj/bias" in path else np.abs(gradient).max()
        assert scale > 1e-5, path
        difference = np.abs(ours_flat[path] - gradient).max()
        assert difference < 5e-5 * scale, path


def test_targets_are_means_of_standardised_sequences(case):
    targets = np.asarray(ours(case, case.params, case.teacher))
    np.testing.assert_allclose(targets.mean(1), 0, atol=1e-5)  # over time
    targets = np.asarray(ours(case, case.params, case.teacher, top=1))
    np.testing.assert_allclose(targets.std(1), 1, atol=1e-3)


def changed(params: dict, prefix: str) -> dict:
    """The same tree, with other values under encoder/<prefix>."""
    flat = traverse_util.flatten_dict(params, sep="/")
    below = [path for path in flat if path.startswith(f"encoder/{prefix}")]
    assert below
    rng = np.random.default_rng(0)
    other = {path: flat[path] + 0.1 * rng.standard_normal(flat[path].shape) for path in below}
    return traverse_util.unflatten_dict(
        flat | {path: x.astype(np.float32) for path, x in other.items()}, sep="/"
    )


def test_teacher_has_its_own_blocks_and_reads_the_student_for_the_rest(case):
    before = ours(case, case.params, case.teacher)
    for prefix in ("stem_conv_0", "projection", "pos_conv_0"):
        after = ours(case, changed(case.params, prefix), case.teacher)
        assert np.abs(after - before).max() > 1e-2, prefix
    for prefix in ("layer_", "encoder_norm", "mask_embedding"):
        after = ours(case, changed(case.params, prefix), case.teacher)
        np.testing.assert_array_equal(after, before)
    for prefix in ("layer_2/feed_forward", "encoder_norm"):
        after = ours(case, case.params, changed(case.teacher, prefix))
        assert np.abs(after - before).max() > 1e-2, prefix


def test_teacher_is_in_evaluation_mode_and_the_student_in_training(case):
    rates = {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.3}
    noisy = case.encoder.clone(**rates)
    np.testing.assert_array_equal(
        ours(case, case.params, case.teacher, **rates), ours(case, case.params, case.teacher)
    )
    loss = jax.jit(
        lambda keys: data2vec.loss(
            noisy, case.config, case.params, case.teacher, case.batch(), keys
        )[0]
    )
    assert loss(rngs(0)) == loss(rngs(0)) != loss(rngs(1))


def test_no_gradient_reaches_teacher_or_targets(case):
    def loss(teacher: dict, params: dict) -> jax.Array:
        return data2vec.loss(case.encoder, case.config, params, teacher, case.batch(), rngs(0))[0]

    gradient = jax.jit(jax.grad(loss))(case.teacher, case.params)
    assert not any(x.any() for x in jax.tree.leaves(gradient))

    def targets(params: dict) -> jax.Array:
        z = jnp.asarray(torch_models.noise(24 * 48)).reshape(2, 24, 48)
        return (data2vec.targets(case.encoder, case.config, params, case.teacher, z) ** 3).sum()

    assert not any(x.any() for x in jax.tree.leaves(jax.jit(jax.grad(targets))(case.params)))


def test_standard_deviations_are_those_that_fairseq_logs(case, expected, measured):
    health = data2vec.health(case.config, measured[1], jnp.float32(case.mask.sum()), jnp.int32(0))
    mask = torch.from_numpy(case.mask)
    logged = {"target_std": expected.targets[mask], "prediction_std": expected.predictions}
    for name, y in logged.items():
        theirs = torch.sqrt(y.detach().var(dim=0) + 1e-6).mean()
        assert float(health[name]) == pytest.approx(float(theirs), rel=1e-4)


def test_a_constant_prediction_has_the_standard_deviation_of_the_epsilon():
    frames = jnp.full((50, 4), 0.25)
    sums = {f"{n}_{p}": (frames**p).sum(0) for n in ("target", "prediction") for p in (1, 2)}
    health = data2vec.health(music2vec.get_config(), sums, jnp.float32(50), jnp.int32(0))
    assert float(health["prediction_std"]) == pytest.approx(1e-3, rel=1e-3)


def test_decay_ramps_linearly():
    config = music2vec.get_config()
    decay = [float(data2vec.ema_decay(config, jnp.int32(u))) for u in (0, 15_000, 30_000, 99_999)]
    np.testing.assert_allclose(decay, [0.999, 0.99945, 0.9999, 0.9999], rtol=1e-7)
    # fairseq get_annealed_rate
    for u in (1, 7_777, 29_999):
        rate = 0.9999 - (0.9999 - 0.999) * (1 - u / 30_000)
        assert 1 - float(data2vec.ema_decay(config, jnp.int32(u))) == pytest.approx(
            1 - rate, rel=1e-3
        )


def test_teacher_averages_blocks_by_the_formula():
    config = tiny.config()  # from 0.5 to 0.9 in four updates
    decays = [0.6, 0.7, 0.8, 0.9, 0.9]  # after updates 1, 2, ...
    rng = np.random.default_rng(0)

    def student() -> dict:
        names = ("layer_0", "encoder_norm", "pos_conv_0", "stem_conv_0", "projection")
        return {"encoder": {n: {"x": rng.normal(size=7).astype(np.float32)} for n in names}}

    teacher = {"encoder": data2vec.averaged(student()["encoder"])}
    assert set(teacher["encoder"]) == {"layer_0", "encoder_norm"}
    expected = {n: teacher["encoder"][n]["x"].astype(float) for n in teacher["encoder"]}
    for update, decay in enumerate(decays, start=1):
        params = student()
        teacher = data2vec.after_update(config, params, teacher, jnp.int32(update))
        assert set(teacher) == {"encoder"} and set(teacher["encoder"]) == set(expected)
        for name in expected:
            expected[name] = decay * expected[name] + (1 - decay) * params["encoder"][name]["x"]
            np.testing.assert_allclose(teacher["encoder"][name]["x"], expected[name], rtol=1e-5)


def test_small_changes_reach_a_teacher_of_long_memory():
    """float32 keeps (1 - decay) * (student - teacher) where bfloat16 would lose it."""
    config = music2vec.get_config()
    teacher = {"encoder": {"layer_0": {"x": jnp.float32(1.0)}}}
    params = {"encoder": {"layer_0": {"x": jnp.float32(1.01)}}}
    after = data2vec.after_update(config, params, teacher, jnp.int32(50_000))
    assert float(after["encoder"]["layer_0"]["x"]) - 1 == pytest.approx(1e-6, rel=0.1)


def test_initial_teacher_is_the_student():
    config = tiny.config()
    encoder = Encoder(**config.encoder)
    params, teacher = jax.jit(lambda key: data2vec.init(key, encoder, config, 400))(
        jax.random.key(0)
    )
    for name, tree in teacher["encoder"].items():
        jax.tree.map(np.testing.assert_array_equal, tree, params["encoder"][name])
    left_out = params["encoder"].keys() - teacher["encoder"].keys()
    assert not any(name.startswith(("layer_", "encoder_norm")) for name in left_out)
    assert len(teacher["encoder"]) == config.encoder.layers + 1
    bound = 1 / math.sqrt(config.encoder.width)  # torch.nn.Linear
    kernel = np.asarray(params["head"]["kernel"])
    assert 0.95 * bound < np.abs(kernel).max() <= bound


@pytest.mark.parametrize("top", [0, 2])
def test_targets_from_more_blocks_than_there_are_are_refused(top):
    config = tiny.config({"data2vec.top_layers": top})
    with pytest.raises(ValueError, match=rf"data2vec\.top_layers is {top}.* encoder\.layers, 1"):
        data2vec.init(jax.random.key(0), Encoder(**config.encoder), config, 400)


@pytest.mark.parametrize("name, floor", [("target_std", 0.1), ("prediction_std", 0.01)])
def test_collapse_is_told_after_the_warm_up_alone(name, floor):
    config = music2vec.get_config()
    healthy = {"target_std": 0.5, "prediction_std": 0.4}
    fallen = healthy | {name: 0.9 * floor}
    assert data2vec.collapse(config, healthy, 6_000) is None
    assert data2vec.collapse(config, fallen, 5_000) is None
    reason = data2vec.collapse(config, fallen, 5_001)
    assert f"{name} is {0.9 * floor:.4f}, below data2vec.min_{name} = {floor}" in reason
    assert "optim.learning_rate" in reason and "\n" not in reason
    config.data2vec[f"min_{name}"] = 0.0
    assert data2vec.collapse(config, fallen, 5_001) is None
