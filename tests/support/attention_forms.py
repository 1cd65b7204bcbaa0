"""A form of attention with its gradients."""

from collections.abc import Callable

import jax


def with_gradients(form: Callable, qkv: list[jax.Array], dy: jax.Array) -> list[jax.Array]:
    """The output, and what dy gives backwards for q, k and v."""

    @jax.jit
    def both(qkv: list[jax.Array], dy: jax.Array) -> list[jax.Array]:
        y, back = jax.vjp(form, *qkv)
        return [y, *back(dy)]

    return both(qkv, dy)
