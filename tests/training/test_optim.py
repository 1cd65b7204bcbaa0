"""Schedules restated from fairseq's formulas, and Adam and clipping against PyTorch's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from configs import common, music2vec, music2vec2
from musicssl.runtime import sharding
from musicssl.training import optim


def fairseq_tri_stage(step: int, peak: float, stages: tuple[int, int, int], scale: float) -> float:
    """Rate before update `step`, 0-based: the stage that it is in, then the stage's own formula."""
    warmup, hold, decay = stages
    if step < warmup:
        return scale * peak + (peak - scale * peak) / warmup * step
    if step < warmup + hold:
        return peak
    into = min(step - warmup - hold, decay)
    return peak * math.exp(math.log(scale) / decay * into)


def fairseq_polynomial(step: int, peak: float, warmup: int, steps: int) -> float:
    if step <= warmup:
        return peak * step / warmup
    return peak * (1 - (step - warmup) / (steps - warmup)) if step < steps else 0.0


def fairseq_cosine(step: int, peak: float, warmup: int, steps: int) -> float:
    if step < warmup:
        return step * peak / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def assert_same_rates(schedule, expected, steps):
    ours = [float(schedule(jnp.int32(step))) for step in steps]
    np.testing.assert_allclose(ours, [expected(step) for step in steps], rtol=1e-5, atol=1e-12)


def test_tri_stage_at_its_phase_boundaries():
    """music2vec: 12,000 steps up from 5e-6 to 5e-4, to 372,000 constant, 28,000 back to 5e-6."""
    schedule = optim.learning_rate(music2vec.get_config())
    assert float(schedule(0)) == pytest.approx(5e-6, rel=1e-6)
    assert float(schedule(12_000)) == pytest.approx(5e-4, rel=1e-6)
    assert float(schedule(372_000)) == pytest.approx(5e-4, rel=1e-6)
    assert float(schedule(400_000)) == pytest.approx(5e-6, rel=1e-5)
    steps = [0, 1, 5_999, 11_999, 12_000, 12_001, 200_000, 360_000, 371_999, 372_001, 386_000]
    steps += [399_999, 400_000, 500_000]
    stages = 12_000, 360_000, 28_000
    assert_same_rates(schedule, lambda s: fairseq_tri_stage(s, 5e-4, stages, 0.01), steps)


def test_tri_stage_phases_are_shares_of_the_steps():
    schedule = optim.learning_rate(music2vec.get_config("800k"))
    stages = 24_000, 720_000, 56_000
    steps = [0, 23_999, 24_000, 743_999, 744_001, 800_000]
    assert_same_rates(schedule, lambda s: fairseq_tri_stage(s, 5e-4, stages, 0.01), steps)


def test_polynomial_at_its_boundaries():
    """HuBERT: 32,000 steps from 0 to 5e-4, then to 0 at the last one."""
    config = common.get_config()
    config.optim.schedule = "polynomial"
    config.optim.warmup_steps = 32_000
    schedule = optim.learning_rate(config)
    assert float(schedule(0)) == 0
    assert float(schedule(32_000)) == pytest.approx(5e-4, rel=1e-6)
    assert float(schedule(216_000)) == pytest.approx(2.5e-4, rel=1e-5)
    assert float(schedule(400_000)) == 0
    steps = [0, 1, 16_000, 31_999, 32_000, 32_001, 300_000, 399_999, 400_000, 400_001]
    assert_same_rates(schedule, lambda s: fairseq_polynomial(s, 5e-4, 32_000, 400_000), steps)


def test_cosine_at_its_boundaries():
    """music2vec2: 8,000 steps from 0 to 7.5e-4, then half a cosine to 0 at the last one."""
    schedule = optim.learning_rate(music2vec2.get_config())
    assert float(schedule(8_000)) == pytest.approx(7.5e-4, rel=1e-6)
    assert float(schedule(204_000)) == pytest.approx(3.75e-4, rel=1e-5)
    assert float(schedule(400_000)) == float(schedule(500_000)) == 0
    steps = [0, 1, 4_000, 7_999, 8_000, 8_001, 100_000, 300_000, 399_000]
    assert_same_rates(schedule, lambda s: fairseq_cosine(s, 7.5e-4, 8_000, 400_000), steps)


def test_schedules_without_warm_up_start_at_the_peak():
    assert float(optim.tri_stage(1.0, 10, (0, 0.5, 0.5), 0.01)(0)) == 1
    for falling in (optim.polynomial, optim.cosine):
        assert float(falling(1.0, 10, 0)(jnp.int32(5))) == pytest.approx(0.5)
    assert float(optim.cosine(1.0, 10, 0)(jnp.int32(0))) == pytest.approx(1)


def test_unusable_schedules_are_refused():
    config = music2vec.get_config()
    config.optim.phases = (0.1, 0.9, 0.1)
    with pytest.raises(ValueError, match=r"optim\.phases is \(0\.1, 0\.9, 0\.1\)"):
        optim.learning_rate(config)
    config.optim.phases = (0.1, 0.8, 0.1)
    config.optim.end_scale = 0.0
    with pytest.raises(ValueError, match=r"optim\.end_scale is 0\.0"):
        optim.learning_rate(config)
    config.optim.schedule = "cosines"
    with pytest.raises(ValueError, match=r"optim\.schedule is 'cosines'"):
        optim.learning_rate(config)


def test_adam_takes_the_steps_of_torch_adamw():
    """Six updates through warm-up, hold and decay; every parameter decays, vectors too."""
    config = music2vec.get_config()
    config.steps, config.optim.phases, config.optim.weight_decay = 6, (0.34, 0.33, 0.33), 0.1
    config.optim.learning_rate = 0.05
    rng = np.random.default_rng(0)
    start = {"matrix": rng.normal(size=(5, 3)), "vector": rng.normal(size=4)}
    start = {name: x.astype(np.float32) for name, x in start.items()}
    # Gradients of many sizes: the smallest are of the order of epsilon, so its place shows.
    gradients = []
    for _ in range(6):
        normal = {name: rng.normal(size=x.shape) for name, x in start.items()}
        scaled = {name: x * 10.0 ** rng.uniform(-7, 1, x.shape) for name, x in normal.items()}
        gradients.append({name: x.astype(np.float32) for name, x in scaled.items()})

    theirs = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in start.items()}
    torch_adam = torch.optim.AdamW(
        theirs.values(), lr=1.0, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1
    )
    ours = jax.tree.map(jnp.asarray, start)
    adam = optim.adam(config)
    state = adam.init(ours)
    for step, gradient in enumerate(gradients):
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradient[name])
        torch_adam.param_groups[0]["lr"] = fairseq_tri_stage(step, 0.05, (2, 2, 2), 0.01)
        torch_adam.step()
        changes, state = adam.update(gradient, state, ours)
        ours = optax.apply_updates(ours, changes)
        for name, parameter in theirs.items():
            np.testing.assert_allclose(ours[name], parameter.detach(), rtol=2e-5, atol=1e-7)
    assert all(np.abs(ours[name] - start[name]).max() > 0.05 for name in start)


def fairseq_adam(gradient: float, updates: int) -> np.ndarray:
    """Sizes of fairseq's own Adam's updates by a gradient that stays, at a rate of 1."""
    sizes, first, second = [], 0.0, 0.0
    for update in range(1, updates + 1):
        first, second = 0.9 * first + 0.1 * gradient, 0.98 * second + 0.02 * gradient**2
        rate = math.sqrt(1 - 0.98**update) / (1 - 0.9**update)
        sizes.append(rate * first / (math.sqrt(second) + 1e-6))
    return np.array(sizes)


@pytest.mark.parametrize(
    ("gradient", "smaller"), [(1e-3, (0.0060, 0.0013, 7.4e-5)), (1e-4, (0.057, 0.013, 7.3e-4))]
)
def test_fairseq_s_place_of_epsilon_makes_its_first_updates_smaller(gradient, smaller):
    """The deviation that `optim.adam` names: in update 1, 10 and 100."""
    config = music2vec.get_config()
    config.optim.phases, config.optim.learning_rate = (0, 1, 0), 1.0
    config.optim.weight_decay = 0.0
    adam, zero = optim.adam(config), jnp.zeros(())

    def update(state: optax.OptState, _: None) -> tuple[optax.OptState, jax.Array]:
        change, state = adam.update(jnp.float32(gradient), state, zero)
        return state, -change

    with jax.enable_x64(True):  # else rounding is as large as the last of the differences
        _, ours = jax.lax.scan(update, adam.init(zero), None, 100)
    shorter = 1 - fairseq_adam(gradient, 100) / np.asarray(ours)
    np.testing.assert_allclose(shorter[[0, 9, 99]], smaller, rtol=0.05)


def test_fairseq_cuts_off_what_tri_stage_rounds():
    """The deviation that `optim.tri_stage` names: none in the paper's runs."""
    for variant in music2vec.VARIANTS:
        config = music2vec.get_config(variant)
        cut = [int(config.steps * phase) for phase in config.optim.phases]
        if config.steps >= 400_000:
            assert cut == [round(config.steps * phase) for phase in config.optim.phases]
    steps, phases = 400_001, (0.03, 0.9, 0.07)
    schedule = optim.tri_stage(5e-4, steps, phases, 0.01)
    stages = tuple(int(steps * phase) for phase in phases)
    at = [11_999, 12_000, 371_999, 372_000, 372_001, 390_000, 400_000, 400_001]
    theirs = [fairseq_tri_stage(step, 5e-4, stages, 0.01) for step in at]
    ours = [float(schedule(jnp.int32(step))) for step in at]
    off = np.abs(np.array(ours) / theirs - 1)
    assert 1e-4 < off.max() < 2e-4
    # 0.7 steps of warm-up are one, and 3.9 of holding are four
    schedule = optim.tri_stage(1.0, 10, (0.07, 0.39, 0.54), 0.01)
    rates = [float(schedule(jnp.int32(step))) for step in range(7)]
    assert rates == pytest.approx([0.01, 1, 1, 1, 1, 1, 0.01**0.2])


@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_clip_is_torch_clip_grad_norm(limit):
    rng = np.random.default_rng(1)
    gradients = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    parameters = [torch.nn.Parameter(torch.zeros(g.shape)) for g in gradients.values()]
    for parameter, gradient in zip(parameters, gradients.values(), strict=True):
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    clipped = optim.clip(gradients, optax.tree.norm(gradients), limit)
    assert float(norm) == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-5)
    for parameter, gradient in zip(parameters, clipped.values(), strict=True):
        np.testing.assert_allclose(gradient, parameter.grad, rtol=1e-5)


def test_a_limit_of_zero_does_not_clip():
    gradients = {"a": jnp.array([1e6, -1e6])}
    assert optim.clip(gradients, optax.tree.norm(gradients), 0.0) is gradients


def test_norm_is_the_same_where_a_gpu_sums_arrays_of_one_shape_together(monkeypatch):
    rng = np.random.default_rng(0)
    shapes = [(3, 5)] * 20 + [(7,)] * 2 + [()]  # more of one shape than one kernel takes
    gradients = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    expected = np.linalg.norm(np.concatenate([np.ravel(x) for x in gradients]))
    for platform in ("cpu", "gpu"):
        monkeypatch.setattr(sharding, "platform", lambda platform=platform: platform)
        np.testing.assert_allclose(jax.jit(optim.norm)(gradients), expected, rtol=1e-6)
    assert not np.isfinite(optim.norm([*gradients, jnp.full((3, 5), np.nan)]))
