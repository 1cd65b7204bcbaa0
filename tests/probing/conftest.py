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
    from data_pipelines.synth_music.synth_music_dataset_builder import Builder, SynthMusicConfig

    root = tmp_path_factory.mktemp("synth")
    size = SynthMusicConfig(name="16khz", seconds=6.0, train=12, validation=6, test=6)
    Builder(data_dir=str(root), config=size).download_and_prepare()
    return str(root)
