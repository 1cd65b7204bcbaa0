"""The jitted step: accumulation, non-finite batches, donation, and any number of devices."""

import functools
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicssl.runtime import sharding
from musicssl.training import optim, step
from tests.support import tiny

STEPS = 2
SMALL = tiny.NO_DROPOUT | {"batch_size": 8, "data.crop_frames": 24}
QUICK = {"xla_backend_optimization_level": 0}  # compilation is most of these tests


@functools.cache
def one_device() -> jax.sharding.Mesh:
    return sharding.make_mesh(1, jax.devices()[:1])


@functools.cache
def start() -> step.TrainState:
    """NumPy arrays, for no step to consume."""
    return jax.tree.map(np.asarray, step.sharded_init(tiny.config(SMALL), one_device()))


@functools.cache
def compiled(accumulate: int) -> Callable:
    """A step without dropout on one device."""
    config = tiny.config(SMALL | {"accumulate": accumulate})
    with jax.set_mesh(one_device()):
        lowered = step.make_step(config, one_device()).lower(start(), {}, tiny.clips(config))
    return lowered.compile(QUICK)


@functools.cache
def run(accumulate: int = 1) -> tuple[step.TrainState, list[dict[str, float]]]:
    """The state after a few steps without dropout, and the metrics of each."""
    state, measured = start(), []
    for seed in range(STEPS):
        state, metrics = compiled(accumulate)(state, {}, tiny.clips(tiny.config(SMALL), seed))
        measured.append({name: float(x) for name, x in metrics.items()})
    return jax.tree.map(np.asarray, state), measured


def largest_difference(ours: dict, theirs: dict) -> float:
    """Of all leaves, relative to the largest value of each."""
    return max(
        float(np.abs(a - b).max() / np.abs(b).max())
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
        if np.abs(b).max() > 1e-6
    )


def test_a_step_trains():
    state, metrics = run()
    assert state.step == state.updates == STEPS
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, state.params, start().params)
    assert all(jax.tree.leaves(moved)), moved
    rate = optim.learning_rate(tiny.config())
    assert [m["learning_rate"] for m in metrics] == pytest.approx(
        [float(rate(i)) for i in range(STEPS)]
    )
    for m in metrics:
        assert m["nonfinite"] == 0 and m["loss"] > 0 and m["grad_norm"] > 0
        assert 0.3 < m["masked_fraction"] < 0.6


def test_the_teacher_averages_in_the_parameters_that_the_step_made():
    """fairseq's teacher, at the next forward pass, has seen the update before it."""
    after, _ = compiled(1)(start(), {}, tiny.clips(tiny.config(SMALL)))
    decay = 0.5 + (0.9 - 0.5) * 1 / 4  # one update into the ramp
    for name, tree in start().teacher["encoder"].items():
        student = after.params["encoder"][name]
        moved = jax.tree.map(lambda new, old: (1 - decay) * (new - old), student, tree)
        seen = jax.tree.map(lambda new, old: new - old, after.teacher["encoder"][name], tree)
        for ours, theirs in zip(jax.tree.leaves(seen), jax.tree.leaves(moved), strict=True):
            if theirs.ndim == 2:  # Adam's first step is the learning rate, 1e-5
                assert np.abs(theirs).max() > 3e-6
            np.testing.assert_allclose(ours, theirs, atol=2e-7)


def test_metrics_are_float32_scalars_on_the_device():
    config = tiny.config()
    state = step.state_shapes(config)
    _, metrics = jax.eval_shape(
        functools.partial(step.update, config), state, {}, tiny.clips(config)
    )
    assert {(x.shape, x.dtype) for x in metrics.values()} == {((), jnp.dtype("float32"))}
    assert set(metrics) >= {"loss", "grad_norm", "learning_rate", "masked_fraction", "nonfinite"}
    assert set(metrics) >= {"target_std", "prediction_std", "ema_decay"}


@pytest.mark.slow
def test_four_parts_give_the_update_of_the_whole_batch():
    state, metrics = run()
    accumulated, accumulated_metrics = run(accumulate=4)
    for ours, theirs in zip(accumulated_metrics, metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    # Adam's first steps divide by the gradient's own size, so that rounding shows most in them.
    assert largest_difference(accumulated.params, state.params) < 1e-3
    assert largest_difference(accumulated.teacher, state.teacher) < 1e-3
    assert accumulated.updates == STEPS  # one teacher update a step, not one a part


@pytest.mark.slow
def test_parts_give_the_gradients_of_all_masked_copies():
    """data2vec 2.0: a clip's copies stay together."""
    still = SMALL | {"decoder.dropout": 0.0, "decoder.noise": 0.0, "batch_size": 4}
    config = tiny.copies_config(still)
    keys = step.streams(config.seed, 1)
    state = step.sharded_init(config, one_device())
    batch = step.prepare(config, keys["mask"], jnp.asarray(tiny.clips(config)))
    measured = []
    for parts in (1, 2):
        config.accumulate = parts
        gradients = jax.jit(functools.partial(step.accumulate, config))
        lowered = gradients.lower(state.params, state.teacher, batch, keys)
        measured.append(lowered.compile(QUICK)(state.params, state.teacher, batch, keys))
    (loss, sums, whole), (of_parts, sums_of_parts, gradients) = measured
    assert float(of_parts) == pytest.approx(float(loss), rel=1e-5)
    assert largest_difference(sums_of_parts, sums) < 1e-4
    assert largest_difference(gradients, whole) < 1e-3
    assert not whole["encoder"].pop("mask_embedding").any()  # zeros stand in its place
    assert all(x.any() for x in jax.tree.leaves(whole))


def test_parts_take_every_nth_clip_and_have_dropout_of_their_own(monkeypatch):
    """An objective whose sums show which clips, masks and keys it was given."""

    def loss(encoder, config, params, teacher, batch, rngs):
        noise = {name: jax.random.uniform(key, (2,)) for name, key in rngs.items()}
        place = jnp.arange(1, 5)[:, None]
        seen = noise | {
            "audio": (place * abs(batch.encoder_input)).sum(),
            "clips": jnp.int32(batch.clips),
        }
        seen |= {"mask": (place * batch.mask.mask).sum(), "masked": batch.masked}
        return params["w"] * noise["dropout"][0] / batch.masked, seen

    monkeypatch.setitem(step.OBJECTIVES, "data2vec", types.SimpleNamespace(loss=loss))
    config = tiny.config({"accumulate": 4})
    keys = step.streams(0, 1)
    batch = step.prepare(config, keys["mask"], jnp.asarray(tiny.clips(config)))
    value, seen, gradient = jax.jit(
        lambda: step.accumulate(config, {"w": jnp.float32(2.0)}, {}, batch, keys)
    )()
    place = np.repeat(np.arange(1, 5), 4)[:, None]  # of row 4 j + i in part i
    assert float(seen["audio"]) == pytest.approx(
        float((place * abs(batch.encoder_input)).sum()), rel=1e-5
    )
    assert int(seen["mask"]) == int((place * batch.mask.mask).sum())
    assert float(seen["masked"]) == 4 * float(batch.mask.mask.sum())
    assert int(seen["clips"]) == 4 * 16
    drawn = [jax.random.uniform(jax.random.fold_in(keys["dropout"], i), (2,)) for i in range(4)]
    np.testing.assert_allclose(seen["dropout"], sum(drawn), rtol=1e-6)
    layers = jax.random.uniform(keys["layerdrop"], (2,))  # one draw a step: the parts agree
    np.testing.assert_allclose(seen["layerdrop"], 4 * layers, rtol=1e-6)
    expected = sum(x[0] for x in drawn) / batch.masked
    assert float(value) == pytest.approx(2 * float(expected), rel=1e-5)
    assert float(gradient["w"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("module, leaf", [("encoder", "mask_embedding"), ("head", "bias")])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_non_finite_step_changes_nothing_but_the_step(module, leaf, value):
    state = jax.tree.map(np.array, start())
    state.params[module][leaf][0] = value
    after, metrics = compiled(1)(state, {}, tiny.clips(tiny.config(SMALL)))
    assert float(metrics["nonfinite"]) == 1
    assert int(after.step) == 1 and int(after.updates) == 0
    assert_same_but_for_the_step(after, state)


def test_an_infinite_gradient_alone_is_enough(monkeypatch):
    def overflowed(config, params, *_):
        gradients = jax.tree.map(jnp.zeros_like, params)
        gradients["head"]["bias"] = gradients["head"]["bias"].at[0].set(jnp.inf)
        sums = {f"{n}_{p}": jnp.ones(48) for n in ("target", "prediction") for p in (1, 2)}
        return jnp.float32(1.0), sums, gradients

    monkeypatch.setattr(step, "accumulate", overflowed)
    update = functools.partial(step.update, tiny.config(SMALL))
    advance = jax.jit(update).lower(start(), {}, tiny.clips(tiny.config(SMALL))).compile(QUICK)
    after, metrics = advance(start(), {}, tiny.clips(tiny.config(SMALL)))
    assert float(metrics["loss"]) == 1 and float(metrics["nonfinite"]) == 1
    assert_same_but_for_the_step(after, start())


def assert_same_but_for_the_step(after: step.TrainState, before: step.TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=0), before._replace(step=0))


def test_the_state_is_donated():
    state = jax.tree.map(jnp.array, start())
    after, _ = compiled(1)(state, {}, tiny.clips(tiny.config(SMALL)))
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert not any(x.is_deleted() for x in jax.tree.leaves(after))


def test_streams_are_functions_of_seed_and_step():
    def words(seed: int, at: int) -> set[tuple]:
        keys = step.streams(seed, at).values()
        return {tuple(np.asarray(jax.random.key_data(key))) for key in keys}

    assert words(1, 7) == words(1, 7)
    assert len(words(1, 7)) == len(step.STREAMS)
    assert not words(1, 7) & (words(1, 8) | words(2, 7))


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"method is 'byol': use one of \['data2vec'"):
        step.objective(tiny.config({"method": "byol"}))
