"""The forms of attention with dropout against each other and against jax.nn's without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicssl.model import attention, dropout
from tests.support.attention_forms import with_gradients


def arrays(frames: int) -> list[jax.Array]:
    """q, k, v and the output's gradient, [b, t, h, d]."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, frames, 3, 8)), jnp.float32) for _ in range(4)]


def test_the_forms_drop_the_same_weights_and_have_the_same_gradients():
    *qkv, dy = arrays(37)
    key = jax.random.key(5)
    results = []
    for form in (attention.attend, attention.attend_long):
        results.append(with_gradients(lambda *x, form=form: form(*x, key, 0.3), qkv, dy))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


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
