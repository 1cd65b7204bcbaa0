"""The dense layer's bias, whose gradient a TPU takes otherwise than a sum."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicssl.model.dense import Dense, DenseValues, together
from musicssl.runtime import sharding


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_values_and_gradients_are_those_of_flax(platform, monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(3, 5, n)), jnp.float32) for n in (4, 6))
    init = nn.initializers.normal(1.0)
    ours, theirs = Dense(6, jnp.float32, init, init), nn.Dense(6, kernel_init=init, bias_init=init)
    params = ours.init(jax.random.key(0), x)
    assert jax.tree.structure(params) == jax.tree.structure(theirs.init(jax.random.key(0), x))
    results = []
    for layer in (ours, theirs):
        y, back = jax.vjp(layer.apply, params, x)
        results.append((y, *back(dy)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


def test_several_as_one_product_are_the_same_from_the_same_parameters():
    init = nn.initializers.normal(1.0)
    widths = {"first": 6, "second": 3}

    class Apart(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = [Dense(n, jnp.float32, init, init, name=name) for name, n in widths.items()]
            return jnp.concatenate([layer(x) for layer in layers], axis=-1)

    class Together(nn.Module):
        @nn.compact
        def __call__(self, x):
            values = [DenseValues(n, init, init, name=name)(4) for name, n in widths.items()]
            return together(x, values, jnp.float32)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4)), jnp.float32)
    params = Apart().init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, Together().init(jax.random.key(0), x))
    ours, theirs = (module.apply(params, x) for module in (Together(), Apart()))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
