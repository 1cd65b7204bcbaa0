"""Spectral features at the encoder's frames, against NumPy and librosa."""

import jax
import librosa
import numpy as np
import pytest
import scipy.ndimage

from musicssl import audio, spectra
from tests.support import commands
from tests.test_audio import hostile, kaldi_mfcc, log_mel_by_definition

RATE = 16_000
LOWEST = librosa.note_to_hz("C1")


def tones() -> np.ndarray:
    """Two seconds of three tones and some noise: float32 [1, n]."""
    t = np.arange(2 * RATE) / RATE
    hiss = np.random.default_rng(0).standard_normal(len(t)) * 1e-3
    waves = [
        a * np.sin(2 * np.pi * f * t) for a, f in ((0.3, 261.63), (0.1, 1864.66), (0.2, 65.41))
    ]
    return (sum(waves) + hiss).astype(np.float32)[None]


@pytest.mark.parametrize("name", spectra.NAMES)
def test_there_is_a_finite_row_for_each_frame_of_an_encoder(name: str) -> None:
    feature = spectra.feature(name, ceps=20)
    apply = jax.jit(feature.apply)
    for samples in (400, 719, 1040, 8_080):
        sound = 0.1 * np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)
        for x in (sound, np.zeros_like(sound)):
            rows = apply(x)
            assert rows.shape == (2, audio.frame_count(samples), feature.width)
            assert rows.dtype == np.float32 and np.isfinite(rows).all()
    assert feature.definition["feature"] == name


def test_an_unknown_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="no spectral feature 'pitch': use one of"):
        spectra.feature("pitch", ceps=13)


@pytest.mark.parametrize("name", ["mfcc", "partials"])
def test_features_at_100_hz_are_taken_at_the_encoders_frames(name: str) -> None:
    sound = hostile(8_000)["music"].astype(np.float32)[None]
    every = {"mfcc": audio.mfcc, "partials": spectra.partials}[name](sound, 20)
    found = spectra.feature(name, ceps=20).apply(sound)
    np.testing.assert_array_equal(found, every[:, ::2][:, : audio.frame_count(8_000)])


def test_partials_are_bands_above_their_neighbours_and_a_little_of_mfcc() -> None:
    sound = hostile(8_000)["music"]
    found = np.asarray(spectra.partials(sound[None], ceps=13))[0]
    bands = np.maximum(log_mel_by_definition(sound, 80), -12)
    around = scipy.ndimage.uniform_filter1d(bands, 9, axis=1, mode="nearest")
    np.testing.assert_allclose(found[:, :80], bands - around, atol=2e-3)
    np.testing.assert_allclose(found[:, 80:], 0.03 * kaldi_mfcc(sound, 13), atol=1e-4)
    assert found.shape[1] == spectra.feature("partials", 13).width == 119


def test_partials_tell_pitches_apart_where_mfcc_hardly_do() -> None:
    """A note of ten partials, the same a semitone up, and the same with other weights of them."""
    t = np.arange(4_000) / 16_000

    def note(pitch: float, slope: float) -> np.ndarray:
        return sum(np.sin(2 * np.pi * pitch * k * t) / k**slope for k in range(1, 11)) / 10

    ours, theirs = [], []
    for pitch in (262, 330, 440):
        played = [note(pitch, 1.0), note(pitch * 2 ** (1 / 12), 1.0), note(pitch, 1.5)]
        for features, kept in ((spectra.partials, ours), (audio.mfcc, theirs)):
            values = [np.asarray(features(x[None].astype("f4")))[0].mean(0) for x in played]
            kept.append(
                np.linalg.norm(values[0] - values[1]) / np.linalg.norm(values[0] - values[2])
            )
    assert min(np.divide(ours, theirs)) > 2


@pytest.mark.parametrize("kind", ["music", "faint", "falls silent"])
def test_mel_is_kaldis_in_each_frames_own_samples(kind: str) -> None:
    sound = hostile(8_100)[kind]
    wanted = np.maximum(log_mel_by_definition(sound, 80)[::2], -12)
    found = np.asarray(spectra.mel(sound[None].astype(np.float32)))[0]
    np.testing.assert_allclose(found, wanted[: len(found)], atol=2e-3)
    for i in (0, 7, len(found) - 1):
        own = sound[None, 320 * i : 320 * i + 400].astype(np.float32)
        np.testing.assert_allclose(spectra.mel(own)[0, 0], found[i], atol=1e-4)


@pytest.mark.parametrize("kind", ["music", "faint", "falls silent"])
def test_onset_is_librosas_spectral_flux(kind: str) -> None:
    sound = hostile(8_100)[kind]
    bands = np.maximum(log_mel_by_definition(sound, 80)[::2], -12)[: audio.frame_count(8_100)]
    wanted = librosa.onset.onset_strength_multi(
        S=bands.T, sr=RATE, hop_length=320, lag=1, channels=list(range(0, 81, 10)), center=False
    )
    found = np.asarray(spectra.onset(sound[None].astype(np.float32)))[0]
    assert found.max() > 0.1 and (found >= 0).all()
    np.testing.assert_allclose(found, wanted.T, atol=2e-3)


def test_onsets_are_where_notes_begin() -> None:
    """Notes at the beginning of frames 10, 25 and 40, the last of them of high partials alone."""
    sound = 1e-4 * np.random.default_rng(0).standard_normal(60 * 320 + 80).astype(np.float32)
    t = np.arange(len(sound)) / RATE
    for frame, hertz in ((10, 220), (25, 330), (40, 4_000)):
        begun = np.maximum(t - (320 * frame + 200) / RATE, 0)
        sound += 0.1 * (begun > 0) * np.sin(2 * np.pi * hertz * begun) * np.exp(-6 * begun)
    found = np.asarray(spectra.onset(sound[None]))[0]
    assert sorted(found.sum(1).argsort()[-3:]) == [10, 25, 40]
    assert found[40].argmax() > found[10].argmax()


def test_the_constant_q_transform_is_librosas() -> None:
    """In the frames whose filters are inside the audio: at the edges librosa pads otherwise."""
    x = tones()
    found = np.asarray(jax.jit(spectra.amplitudes)(x))[0]
    # librosa's frames are centred on multiples of the hop, an encoder's on the middle of its window
    shifted = x[0, audio.STEM_WINDOW // 2 :]
    transform = librosa.cqt(shifted, sr=RATE, hop_length=audio.STEM_HOP, fmin=LOWEST, n_bins=84)
    hertz = librosa.cqt_frequencies(84, fmin=LOWEST)
    lengths, _ = librosa.filters.wavelet_lengths(freqs=hertz, sr=RATE)
    wanted = (np.abs(transform) / np.sqrt(lengths)[:, None]).T[: len(found)]
    inside = slice(20, 80)
    assert np.abs(found - wanted)[inside].max() < 0.01 * wanted.max()
    for amplitude, note in ((0.3, "C4"), (0.1, "A#6"), (0.2, "C2")):
        bin_ = librosa.note_to_midi(note) - librosa.note_to_midi("C1")
        np.testing.assert_allclose(found[inside, bin_], amplitude / 2, rtol=0.02)


def test_chroma_is_librosas_fold_of_the_same_transform() -> None:
    x = tones()
    found = np.asarray(jax.jit(spectra.chroma)(x))[0]
    transform = np.asarray(jax.jit(spectra.amplitudes)(x))[0].T
    wanted = librosa.feature.chroma_cqt(
        C=transform, sr=RATE, fmin=LOWEST, bins_per_octave=12, norm=np.inf
    )
    np.testing.assert_allclose(found, wanted.T, atol=1e-4)
    assert (found[20:80].argmax(1) == 0).all()  # C, in two octaves


def test_constant_q_is_centred_on_the_encoders_frames() -> None:
    """A tone of 10 ms in the middle of one frame's samples is loudest in that frame."""
    for frame in (0, 12, 24):
        sound = np.zeros((1, 25 * 320 + 80), np.float32)
        middle = 320 * frame + 200
        t = np.arange(-80, 80) / RATE
        sound[0, middle - 80 : middle + 80] = np.hanning(160) * np.sin(2 * np.pi * 1760 * t)
        found = np.asarray(spectra.amplitudes(sound))[0, :, -24:]  # two octaves of short filters
        assert found.sum(1).argmax() == frame


def test_a_convolution_takes_as_many_products_as_are_counted() -> None:
    sound = jax.ShapeDtypeStruct((2, 40 * 320 + 80), np.float32)
    counted = jax.jit(spectra.amplitudes).lower(sound).cost_analysis()["flops"]
    assert 1 < counted / (2 * 2 * 40 * spectra.filter_taps()) < 1.01


ON_EIGHT_DEVICES = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from musicssl import spectra

def features(clips):
    return [spectra.feature(name, 13).apply(clips) for name in spectra.NAMES]

clips = np.random.default_rng(0).standard_normal((16, 4000)).astype(np.float32)
alone = jax.jit(features)(clips)
mesh = jax.make_mesh((4, 2), ("data", "fsdp"), (AxisType.Auto,) * 2)
with jax.set_mesh(mesh):
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    sharded = jax.device_put(clips, rows)
    compiled = jax.jit(features).lower(sharded).compile()
    text = compiled.as_text()
    assert "dot" in text or "custom-call" in text
    for operation in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert operation not in text, operation
    for found, wanted in zip(compiled(sharded), alone, strict=True):
        assert found.sharding.is_equivalent_to(rows, found.ndim), found.sharding
        np.testing.assert_allclose(found, wanted, atol=1e-3)
print("same on", jax.device_count())
"""


def test_sharded_clips_stay_on_their_devices() -> None:
    output, errors = commands.Process(exec, ON_EIGHT_DEVICES, {}, devices=8).communicate()
    assert output.strip() == "same on 8", errors
