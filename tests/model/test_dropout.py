"""Dropout's bits: as uniform and as independent as random ones, wherever they are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicssl.model.dropout import Dropout, bits


def kept(seed: int, shape: tuple[int, ...], rate: float = 0.1) -> np.ndarray:
    x = jnp.ones(shape)
    return np.asarray(Dropout(rate).apply({}, x, False, rngs={"dropout": jax.random.key(seed)}))


def test_rate_and_mean():
    for rate in (0.1, 0.5):
        y = kept(0, (8, 4, 128, 128), rate)
        share = (y == 0).mean()
        assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / y.size)
        assert np.unique(y).tolist() == pytest.approx([0, 1 / (1 - rate)])


def test_nothing_is_dropped_where_nothing_is_asked_for():
    x = jnp.arange(6.0).reshape(2, 3)
    assert Dropout(0.5).apply({}, x, True) is x
    assert Dropout(0.0).apply({}, x, False) is x
    with pytest.raises(ValueError, match=r"dropout rate is 1\.5"):
        Dropout(1.5).apply({}, x, False, rngs={"dropout": jax.random.key(0)})


@pytest.mark.parametrize("shape", [(4096,), (16, 256), (8, 8, 64), (4, 4, 16, 16)])
def test_every_bit_is_fair_and_neighbours_are_independent(shape):
    """Each of the 32 bits over many keys, and against the same bit of the next place and key."""
    drawn = np.stack([np.asarray(bits(jax.random.key(i), shape)) for i in range(64)])
    flat = drawn.reshape(64, -1)
    ones = (flat[..., None] >> np.arange(32, dtype=np.uint32)) & 1  # [keys, places, 32]
    limit = 5 * 0.5 / np.sqrt(ones[..., 0].size)
    assert np.abs(ones.mean((0, 1)) - 0.5).max() < limit
    signs = 2.0 * ones - 1
    for lag in (1, 2, 16, 64):
        assert np.abs((signs[:, lag:] * signs[:, :-lag]).mean((0, 1))).max() < 3 * limit
    assert np.abs((signs[1:] * signs[:-1]).mean((0, 1))).max() < 3 * limit


def test_pairs_of_axes_differ_and_their_words_spread():
    """No head's or clip's mask is another's, not even shifted, and words are as often repeated."""
    drawn = np.asarray(bits(jax.random.key(3), (32, 4, 64, 64))).reshape(128, -1)
    repeated = drawn.size - np.unique(drawn).size
    expected = drawn.size**2 / 2 / 2**32
    assert abs(repeated - expected) < 6 * np.sqrt(expected)
    low = drawn < 0.1 * 2**32
    both = (low[:, None] & low[None]).mean(-1)[np.triu_indices(128, 1)]
    assert both.max() < 0.01 + 6 * np.sqrt(0.01 / 4096)


def test_a_place_keeps_its_bits_in_a_smaller_batch():
    key = jax.random.key(1)
    whole = bits(key, (6, 4, 8, 16))
    assert (bits(key, (2, 4, 8, 16)) == whole[:2]).all()
    assert (bits(key, (6, 4, 5, 16)) == whole[:, :, :5]).all()
