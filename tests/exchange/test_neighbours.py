"""The example that looks for similar tracks, on synthesised clips and a small exported encoder."""

import jax
import numpy as np
import pytest
import soundfile

from musicssl import audio
from musicssl.exchange import huggingface, model_config
from musicssl.exchange.examples import neighbours
from musicssl.exchange.loaded import with_digest
from musicssl.model.encoder import make_encoder
from tests.support import saved_models, tiny

RATE = 16_000


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small encoder with random values, as musicssl.export writes it."""
    config = tiny.config()
    encoder = make_encoder(config)
    params = jax.device_get(encoder.init(jax.random.key(0), np.zeros((1, 4_000))))["params"]
    loaded = with_digest(encoder, params, True, RATE, "here")
    folder = tmp_path_factory.mktemp("exported") / "encoder"
    huggingface.write(
        folder, loaded, model_config.model_type(encoder), saved_models.MASKING, "card"
    )
    return folder


def tone(hertz: float, seconds: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.01, round(seconds * RATE))
    return (noise + 0.3 * np.sin(2 * np.pi * hertz * np.arange(len(noise)) / RATE)).astype("f4")


@pytest.mark.slow
def test_the_nearest_of_a_track_are_those_that_sound_like_it(exported, tmp_path, capsys):
    """Three low tones and three bursts of noise, at several lengths, one of two windows.

    No tone is a multiple of the 50 frames a second, with which its phase would be that of the
    frames: that sounds as a tone does, but not to a stem of random values.
    """
    (tmp_path / "sub").mkdir()
    rng = np.random.default_rng(0)
    for i, seconds in enumerate((1.0, 2.3, 11.0)):
        soundfile.write(tmp_path / f"tone{i}.wav", tone(211 + 3 * i, seconds, i), RATE)
        noise = rng.normal(0, 0.2, round(seconds * RATE))
        soundfile.write(tmp_path / "sub" / f"noise{i}.flac", noise, RATE)
    (tmp_path / "broken.mp3").write_bytes(b"no sound")
    assert neighbours.main([str(exported), str(tmp_path), "--count=2"]) == 0
    output, errors = capsys.readouterr()
    assert "left out" in errors and "broken.mp3" in errors
    lines = output.splitlines()
    assert len(lines) == 6 * 3
    for at in range(0, len(lines), 3):
        kind = "noise" if "noise" in lines[at] else "tone"
        assert all(kind in line for line in lines[at + 1 : at + 3]), lines[at : at + 3]


def test_a_track_is_described_by_all_of_it(exported, monkeypatch):
    """The windows' frames are those that the encoder gives each window by itself."""
    monkeypatch.setattr(neighbours, "SECONDS", 1)
    monkeypatch.setattr(neighbours, "BATCH", 2)
    describe, rate = neighbours.describer(exported)
    waveform = tone(300, 2.5, 0)
    loaded = neighbours.pretrained.load_encoder(exported)
    normal = np.asarray(audio.normalize(waveform[None]))
    sums, frames = 0, 0
    apply = jax.jit(loaded.encoder.apply)
    for clip in np.split(normal, [rate, 2 * rate], axis=1):
        hidden = apply({"params": loaded.params}, clip).hidden
        sums, frames = sums + np.mean(hidden, 0)[0].sum(0), frames + hidden[0].shape[1]
    np.testing.assert_allclose(describe(waveform), sums / frames, rtol=0, atol=1e-4)


@pytest.mark.parametrize("files, message", [(1, "holds 1 audio files"), (3, "holds no encoder")])
def test_what_cannot_be_compared_is_refused(files, message, tmp_path, capsys):
    for i in range(files):
        soundfile.write(tmp_path / f"{i}.wav", tone(300, 0.1, i), RATE)
    with pytest.raises(SystemExit) as left:
        neighbours.main([str(tmp_path / "nothing"), str(tmp_path)])
    assert left.value.code == 2 and message in capsys.readouterr().err
