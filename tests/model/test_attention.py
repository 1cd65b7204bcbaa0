"""The forms of attention with dropout against each other and against jax.nn's without."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicssl.model import attention, attention_kernel, dropout


def arrays(frames: int) -> list[jax.Array]:
    """q, k, v and the output's gradient, [b, t, h, d]."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, frames, 3, 8)), jnp.float32) for _ in range(4)]


def with_gradients(form: Callable, qkv: list[jax.Array], dy: jax.Array) -> list[jax.Array]:
    """The output, and what dy gives backwards for q, k and v."""

    @jax.jit
    def both(qkv: list[jax.Array], dy: jax.Array) -> list[jax.Array]:
        y, back = jax.vjp(form, *qkv)
        return [y, *back(dy)]

    return both(qkv, dy)


def test_the_forms_drop_the_same_weights_and_have_the_same_gradients():
    *qkv, dy = arrays(37)
    key = jax.random.key(5)
    results = []
    for form in (attention.attend, attention.attend_long):
        results.append(with_gradients(lambda *x, form=form: form(*x, key, 0.3), qkv, dy))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("frames, heads, d", [(40, 4, 64), (264, 1, 128), (24, 8, 32)])
def test_the_kernel_drops_the_same_weights_and_has_the_same_gradients(frames, heads, d):
    """One block of rows, several, and four heads of one block of channels."""
    rng = np.random.default_rng(1)
    shape = (2, frames, heads, d)
    *qkv, dy = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(4))
    key = jax.random.key(3)
    words = jnp.stack(dropout.salts(key, (2, heads)), axis=-1)
    assert attention_kernel.fits(frames, heads, d)
    kernels = with_gradients(lambda *x: attention_kernel.attend(*x, words, 0.3, True), qkv, dy)
    plain = with_gradients(lambda *x: attention.attend(*x, key, 0.3), qkv, dy)
    for ours, theirs in zip(kernels, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
    "frames, heads, d, rows",
    [
        (1496, 12, 64, 136),
        (1496, 16, 64, 136),
        (1499, 12, 64, None),  # prime
        (1496, 3, 64, None),  # no whole number of 128 channels
        (1496, 12, 96, None),
    ],
)
def test_shapes_that_the_kernel_takes(frames, heads, d, rows):
    assert attention_kernel.fits(frames, heads, d) == (rows is not None)
    if rows:
        assert attention_kernel.rows_of(frames) == rows


def test_dropout_by_hand():
    """Weights of kept places over 0.7, of the softmax without dropout."""
    q, k, v, _ = arrays(11)
    key = jax.random.key(2)
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    kept = np.asarray(dropout.keep(key, weights.shape, 0.3))
    assert 0.6 < kept.mean() < 0.8
    expected = np.einsum("bhqk,bkhd->bqhd", weights * kept / 0.7, v)
    for form in (attention.attend, attention.attend_long):
        np.testing.assert_allclose(form(q, k, v, key, 0.3), expected, atol=1e-5)


@pytest.mark.parametrize("frames, form", [(8, "attend"), (attention.LONG, "attend_long")])
def test_the_form_follows_the_length(frames, form, monkeypatch):
    called = []
    monkeypatch.setattr(attention, form, lambda q, *_: called.append(form) or q)
    q = jnp.zeros((1, frames, 1, 8))
    attention.attention(q, q, q, jax.random.key(0), 0.1)
    assert called == [form]


def test_without_a_key_nothing_is_dropped():
    q, k, v, _ = arrays(9)
    ours = attention.attention(q, k, v, None, 0.5)
    np.testing.assert_allclose(ours, jax.nn.dot_product_attention(q, k, v), atol=1e-6)
