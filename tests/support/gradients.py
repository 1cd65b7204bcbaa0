"""Values and gradients of two forms of one function, side by side."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def both_ways(function: Callable, arguments: list, dy: jax.Array) -> list[jax.Array]:
    """The function's value, and what dy gives backwards for each argument, in float32."""

    @jax.jit
    def run(arguments: list, dy: jax.Array) -> list[jax.Array]:
        y, back = jax.vjp(function, *arguments)
        return [y, *back(dy.astype(y.dtype))]

    return [np.asarray(x.astype(jnp.float32)) for x in run(arguments, dy)]


def assert_close(ours: list[np.ndarray], exact: list[np.ndarray], error: float) -> None:
    """Hold the norm of each difference to a share of the norm of what is exact."""
    for x, y in zip(ours, exact, strict=True):
        assert x.shape == y.shape
        assert np.linalg.norm(x - y) <= error * np.linalg.norm(y)
