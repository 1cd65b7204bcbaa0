"""Few draws of the bootstrap, since intervals are not looked at here, and a few short clips."""

import pytest

from musicssl.probing import metrics


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of 20 draws; test_metrics.py has many."""
    drawn = metrics.bootstrap
    monkeypatch.setattr(metrics, "bootstrap", lambda *given, draws: drawn(*given, draws=20))


@pytest.fixture(scope="session")
def synth_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.support import small_sets

    root = tmp_path_factory.mktemp("synth")
    small_sets.music(root)
    return str(root)
