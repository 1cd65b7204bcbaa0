"""What the tests of kernels share."""

import functools

import pytest
from jax.experimental import pallas as pl


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run GPU kernels by Pallas's interpreter, since there is no GPU."""
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
