"""The encoder against transformers' models with the same random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util

from musicssl.exchange import state_dict
from musicssl.model import encoder as subject
from tests.support import torch_models

TOLERANCE = 1e-4
# Half the time to compile; what is compared is small.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LENGTHS = (719, 8000)  # one frame, 24
# of clips in one batch: odd ones, just over a second, a sample more than a frame needs or less
MIXED = (24_000, 16_001, 16_080, 16_079, 9_137, 23_999, 400)


def outputs(encoder: subject.Encoder, params: dict, audio: np.ndarray) -> subject.Output:
    return jit(encoder.apply)({"params": params}, audio)


def difference(ours: list[jax.Array], theirs: list[np.ndarray]) -> float:
    """The largest over all arrays, which have to vary and be of one shape."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and b.std() > 0.02
    return max(float(np.abs(np.asarray(a) - b).max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", torch_models.KINDS)
def test_every_layer_of_every_kind(kind):
    model = torch_models.small(kind)
    encoder, params = torch_models.ours(model)
    ffn = []
    for layer in model.encoder.layers:
        layer.feed_forward.output_dense.register_forward_hook(lambda *seen: ffn.append(seen[2]))
    for samples in LENGTHS:
        audio = torch_models.noise(samples)
        ours = outputs(encoder, params, audio)
        assert ours.hidden[0].shape[1] == (samples - 400) // 320 + 1
        assert difference(ours.hidden, torch_models.hidden_states(model, audio)) < TOLERANCE
        assert difference(ours.ffn, [x.numpy() for x in ffn]) < TOLERANCE
        ffn.clear()


@pytest.mark.parametrize("kind", ["data2vec", "data2vec-even", "hubert", "hubert-large"])
def test_padded_clips_have_the_states_that_each_has_alone(kind):
    """Both kinds of stem and of positional convolution, beside transformers and beside itself."""
    model = torch_models.small(kind)
    encoder, params = torch_models.ours(model)
    clips = [torch_models.noise(n, clips=1) for n in (*MIXED, 250)]
    lengths = np.array([x.shape[1] for x in clips])
    batch = np.concatenate([np.pad(x, ((0, 0), (0, MIXED[0] - x.shape[1]))) for x in clips])
    run = jit(lambda x, samples=None: encoder.apply({"params": params}, x, samples=samples).hidden)

    together = run(batch, lengths)
    for i, clip in enumerate(clips):
        if clip.shape[1] < 400:  # less than one window of the stem: with zeros up to it
            clip = np.pad(clip, ((0, 0), (0, 400 - clip.shape[1])))
        frames = (clip.shape[1] - 400) // 320 + 1
        ours = [x[i : i + 1, :frames] for x in together]
        theirs = torch_models.hidden_states(model, clip)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)
        if i == 1:
            for a, b in zip(ours, run(clip), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_padded_clips_are_refused_where_weights_are_dropped():
    encoder, params = small_encoder(attention_dropout=0.1)
    audio, rngs = torch_models.noise(4000), {"dropout": jax.random.key(0)}

    def trained(params: dict) -> subject.Output:
        return encoder.apply({"params": params}, audio, True, np.array([4000, 3000]), rngs=rngs)

    with pytest.raises(ValueError, match="train on clips of one length"):
        jax.eval_shape(trained, params)


def test_audio_of_less_than_one_window_is_refused():
    encoder, params = small_encoder()
    with pytest.raises(ValueError, match=r"399 samples holds no encoder frame: give 400 samples"):
        encoder.apply({"params": params}, torch_models.noise(399))


@pytest.mark.parametrize("family, parameters", [("data2vec", 93_164_288), ("hubert", 94_371_712)])
def test_base_models(family, parameters):
    model = torch_models.make(family)
    encoder, params = torch_models.ours(model)
    assert sum(x.size for x in jax.tree.leaves(params)) == parameters
    assert sum(x.numel() for x in model.parameters()) == parameters
    audio = torch_models.noise(16_080, clips=1)
    ours = outputs(encoder, params, audio).hidden
    assert len(ours) == 13
    assert difference(ours, torch_models.hidden_states(model, audio)) < TOLERANCE


@pytest.mark.parametrize(
    "family, options", [("hubert", torch_models.LARGE), ("data2vec", {"conv_bias": True})]
)
def test_large_blocks(family, options):
    large = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
    model = torch_models.make(family, num_hidden_layers=2, **large, **options)
    encoder, params = torch_models.ours(model)
    audio = torch_models.noise(8000, clips=1)
    ours = outputs(encoder, params, audio).hidden
    assert difference(ours, torch_models.hidden_states(model, audio)) < TOLERANCE


@pytest.mark.parametrize("kind", ["data2vec", "hubert-large"])
def test_gradients(kind):
    model = torch_models.small(kind)
    encoder, params = torch_models.ours(model)
    audio = torch_models.noise(4000)

    def loss(params):
        return jnp.sin(jnp.square(encoder.apply({"params": params}, audio).hidden[-1])).mean()

    ours = jit(jax.grad(loss))(params)
    model(torch.from_numpy(audio)).last_hidden_state.square().sin().mean().backward()
    theirs = {
        name: (torch.zeros_like(x) if x.grad is None else x.grad).numpy()
        for name, x in model.named_parameters()
    }
    theirs = state_dict.from_tensors(encoder, theirs, "gradients")
    ours, theirs = (traverse_util.flatten_dict(tree, sep="/") for tree in (ours, theirs))
    largest = max(np.abs(x).max() for x in theirs.values())
    assert largest > 1e-3
    for path, gradient in theirs.items():
        np.testing.assert_allclose(ours[path], gradient, atol=1e-4 * largest, err_msg=path)


@pytest.mark.parametrize("kind", ["data2vec", "hubert-large"])
def test_masked_frames(kind):
    model = torch_models.small(kind)
    encoder, params = torch_models.ours(model)
    audio = torch_models.noise(8000)
    mask = np.random.default_rng(0).random((2, 24)) < 0.5
    with torch.no_grad():
        theirs = model(torch.from_numpy(audio), mask_time_indices=torch.from_numpy(mask))

    def masked(module: subject.Encoder) -> jax.Array:
        z = module.mask(module.project(module.stem(audio)), mask, train=False)
        return module.contextualize(z).hidden[-1]

    ours = jit(lambda params: encoder.apply({"params": params}, method=masked))(params)
    assert difference([ours], [theirs.last_hidden_state.numpy()]) < TOLERANCE
    unmasked = outputs(encoder, params, audio).hidden[-1]
    assert difference([unmasked], [theirs.last_hidden_state.numpy()]) > 0.1


def small_encoder(**options) -> tuple[subject.Encoder, dict]:
    encoder, params = torch_models.ours(torch_models.small("data2vec"))
    rates = ("dropout", "attention_dropout", "activation_dropout", "input_dropout", "layerdrop")
    return encoder.clone(**dict.fromkeys(rates, 0.0) | options), params


def run(encoder: subject.Encoder, params: dict, train: bool, seed: int = 0) -> subject.Output:
    rngs = {"dropout": jax.random.key(seed), "layerdrop": jax.random.key(seed + 1)}
    return run_jitted(encoder, params, torch_models.noise(4000), train, rngs)


@functools.partial(jit, static_argnums=(0, 3))
def run_jitted(
    encoder: subject.Encoder, params: dict, audio: np.ndarray, train: bool, rngs: dict
) -> subject.Output:
    return encoder.apply({"params": params}, audio, train=train, rngs=rngs)


def test_training_without_dropout_is_evaluation():
    encoder, params = small_encoder()
    evaluated = run(encoder, params, train=False)
    # A rate that never drops takes the path that writes attention out.
    for rates in ({}, {"attention_dropout": 1e-9}):
        trained = run(encoder.clone(**rates), params, train=True)
        assert difference(trained.hidden, [np.asarray(x) for x in evaluated.hidden]) < 1e-5


def test_each_dropout_drops_in_training_alone():
    z = torch_models.noise(10 * 48).reshape(2, 10, 48)

    def last(rates: dict[str, float], train: bool) -> jax.Array:
        encoder, params = small_encoder(layers=1, **rates)

        def body(module: subject.Encoder) -> jax.Array:
            masked = module.mask(z, np.zeros((2, 10), bool), train=train)
            return module.contextualize(masked, train).hidden[-1]

        rngs = {"dropout": jax.random.key(0)}
        return jit(lambda p: encoder.apply({"params": p}, method=body, rngs=rngs))(params)

    names = ("dropout", "attention_dropout", "activation_dropout", "input_dropout")
    evaluated = last(dict.fromkeys(names, 0.5), train=False)
    np.testing.assert_array_equal(evaluated, last({}, train=False))
    for name in names:
        assert np.abs(last({name: 0.5}, train=True) - evaluated).max() > 0.01, name


def test_layerdrop_skips_whole_layers():
    encoder, params = small_encoder(layerdrop=1.0)
    hidden = run(encoder, params, train=True).hidden
    for x in hidden[1:]:
        np.testing.assert_array_equal(x, hidden[0])
    encoder = encoder.clone(layerdrop=0.5)
    kept = [
        [not np.array_equal(a, b) for a, b in zip(h[1:], h[:-1], strict=True)]
        for h in (run(encoder, params, train=True, seed=seed).hidden for seed in range(20))
    ]
    assert 0.25 < np.mean(kept) < 0.75
    assert len({tuple(x) for x in kept}) == 4


def test_feature_grad_mult_scales_the_stem_alone():
    encoder, params = small_encoder()

    def gradient(factor: float) -> dict:
        scaled = encoder.clone(feature_grad_mult=factor)
        audio = torch_models.noise(4000)

        def loss(params: dict) -> jax.Array:
            features = scaled.apply({"params": params}, audio, method="stem")
            return (scaled.apply({"params": params}, features, method="project") ** 3).mean()

        return traverse_util.flatten_dict(jit(jax.grad(loss))(params), sep="/")

    full, tenth, none = gradient(1.0), gradient(0.1), gradient(0.0)
    for path, x in full.items():
        factor = 0.1 if path.startswith("stem_") else 1.0
        np.testing.assert_allclose(tenth[path], factor * x, rtol=1e-3, atol=1e-6, err_msg=path)
        if path.startswith("stem_"):
            assert not none[path].any()
        else:
            np.testing.assert_allclose(none[path], x, rtol=1e-5, atol=1e-7, err_msg=path)
    for path in ("stem_conv_0/kernel", "projection/kernel"):
        assert np.abs(full[path]).max() > 1e-3


def test_bfloat16_keeps_float32_parameters():
    encoder, params = small_encoder()
    half = encoder.clone(dtype=jnp.bfloat16)
    fresh = jax.eval_shape(half.init, jax.random.key(0), torch_models.noise(400))["params"]
    assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    ours, exact = (run(x, params, train=False).hidden for x in (half, encoder))
    assert {x.dtype for x in ours} == {jnp.dtype("bfloat16")}
    for a, b in zip(ours, exact, strict=True):
        assert 0 < np.abs(a.astype(jnp.float32) - b).mean() < 0.03


def test_initial_values():
    """fairseq: kaiming stem, N(0, 0.02) matrices, PyTorch's projection, N(0, sqrt(4/kd)) taps."""
    encoder, _ = torch_models.ours(torch_models.small("hubert"))
    encoder = encoder.clone(width=128, ffn_width=256, stem_width=128, layers=1)
    tree = jit(encoder.init)(jax.random.key(0), torch_models.noise(400))["params"]
    flat = traverse_util.flatten_dict(tree, sep="/")
    deviations = {
        "stem_conv_1/kernel": (2 / (3 * 128)) ** 0.5,
        "projection/kernel": (1 / 128) ** 0.5 / 3**0.5,
        "pos_conv_0/direction": (4 / (128 * 128)) ** 0.5,
        "layer_0/attention/q_proj/kernel": 0.02,
        "layer_0/feed_forward/output_dense/kernel": 0.02,
    }
    for path, deviation in deviations.items():
        assert abs(float(flat[path].std()) / deviation - 1) < 0.05, path
    assert flat["mask_embedding"].min() >= 0 and 0.4 < flat["mask_embedding"].mean() < 0.6
    taps = np.sqrt(np.square(flat["pos_conv_0/direction"]).sum((1, 2)))
    np.testing.assert_allclose(flat["pos_conv_0/length"], taps, rtol=1e-5)
    assert not np.any(flat["layer_0/attention/q_proj/bias"])


def test_unknown_stem_norm():
    encoder, _ = small_encoder()
    with pytest.raises(ValueError, match="stem_norm is 'batch'"):
        encoder.clone(stem_norm="batch").init(jax.random.key(0), torch_models.noise(400))
