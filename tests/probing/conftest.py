"""Few draws of the bootstrap: intervals are not looked at here."""

import pytest

from musicssl.probing import metrics


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of 20 draws; test_metrics.py has many."""
    drawn = metrics.bootstrap
    monkeypatch.setattr(metrics, "bootstrap", lambda *given, draws: drawn(*given, draws=20))
