"""The encoder as a GPU computes it, in Pallas's interpreter, beside the encoder as it is written.

Not shown here, since it needs a GPU: cuDNN's attention where nothing is dropped.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicssl.model.encoder import Encoder
from musicssl.runtime import sharding

# Half the time to compile; what is compared is small.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
FAMILIES = {
    "data2vec": {"stem_norm": "layer", "pos_conv_depth": 2, "pos_conv_kernel": 19},
    "hubert": {"stem_norm": "group", "pos_conv_depth": 0, "pos_conv_kernel": 16},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_training_has_the_same_values_and_gradients(interpreted, monkeypatch, family):
    encoder = Encoder(
        layers=2,
        width=128,
        heads=2,
        ffn_width=256,
        stem_width=128,
        stem_bias=False,
        pos_conv_groups=4,
        pre_norm=False,
        dropout=0.1,
        attention_dropout=0.1,
        activation_dropout=0.0,
        input_dropout=0.0,
        layerdrop=0.0,
        feature_grad_mult=1.0,
        dtype=jnp.bfloat16,
        **FAMILIES[family],
    )
    audio = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6_000)), jnp.float32)
    params = encoder.init(jax.random.key(0), audio)["params"]

    def run(encoder: Encoder) -> list[np.ndarray]:
        def loss(params: dict) -> tuple[jax.Array, list[jax.Array]]:
            keys = {"dropout": jax.random.key(1)}
            hidden = encoder.apply({"params": params}, audio, train=True, rngs=keys).hidden
            return jnp.square(hidden[-1].astype(jnp.float32) - 1).mean(), hidden

        gradients, hidden = jit(jax.grad(loss, has_aux=True))(params)
        joined = jnp.concatenate([x.ravel() for x in jax.tree.leaves(gradients)])
        return [np.asarray(x, np.float32) for x in (*hidden, joined)]

    exact = run(encoder.clone(dtype=jnp.float32))
    written = run(encoder)
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    ours = run(encoder)
    for one, other, y in zip(ours, written, exact, strict=True):
        error, rounding = (np.linalg.norm(x - y) / np.linalg.norm(y) for x in (one, other))
        assert error < 1.25 * rounding < 0.05  # that of bfloat16 alone
