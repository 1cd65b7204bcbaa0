import jax
import jax.numpy as jnp
import kaldi_native_fbank
import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
from transformers import Wav2Vec2FeatureExtractor

from musicssl import audio

BASE_STEP_FLOPS = 3 * 14.4e9  # of a base-size training step per second of audio, 5-second clips


def music(samples: int, seed: int = 0) -> np.ndarray:
    """Decaying chords over soft noise, as int16 [n]."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / 16_000
    envelope = np.exp(-3 * (time % 0.5))
    notes = 220 * 2 ** (rng.choice(24, 3, replace=False) / 12)
    partials = [np.sin(2 * np.pi * f * k * time) / k for f in notes for k in range(1, 12)]
    sound = 0.05 * envelope * np.sum(partials, 0) + 1e-3 * rng.standard_normal(samples)
    return np.round(32767 * sound / np.abs(sound).max() * 0.8).astype(np.int16)


def hostile(samples: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    noise = rng.standard_normal(samples)
    return {
        "music": music(samples) / 32768,
        "noise": 0.1 * noise,
        "faint": 1e-3 * noise,
        "offset": 0.02 * noise + 0.5,
        "falls silent": np.where(np.arange(samples) < samples // 2, 0.3 * noise, 0),
        "silent": np.zeros(samples),
        "full scale": np.sign(noise),
    }


def log_mel_by_definition(sound: np.ndarray, bins: int) -> np.ndarray:
    """Kaldi's filter bank in float64, window by window, with an FFT."""
    sound = np.asarray(sound, np.float32).astype(np.float64)
    taper = scipy.signal.get_window("hann", 400, fftbins=False) ** 0.85
    edges = 700 * np.expm1(np.linspace(np.log1p(20 / 700), np.log1p(8000 / 700), bins + 2))
    mel = np.log1p(np.arange(257) * 31.25 / 700)
    corners = np.log1p(edges / 700)
    rows = []
    for start in range(0, len(sound) - 399, 160):
        window = sound[start : start + 400] - sound[start : start + 400].mean()
        emphasised = window - 0.97 * np.concatenate([window[:1], window[:-1]])
        power = np.abs(np.fft.rfft(emphasised * taper, 512)) ** 2
        energies = [np.interp(mel, corners[i : i + 3], [0, 1, 0]) @ power for i in range(bins)]
        rows.append(np.log(np.maximum(energies, np.finfo(np.float32).eps)))
    return np.array(rows)


def mfcc_by_definition(sound: np.ndarray, ceps: int) -> np.ndarray:
    lifter = 1 + 11 * np.sin(np.pi * np.arange(ceps) / 22)
    static = scipy.fft.dct(log_mel_by_definition(sound, 23), norm="ortho")[:, :ceps] * lifter
    return with_slopes(static)


def with_slopes(static: np.ndarray) -> np.ndarray:
    """Adds slopes of a line through five frames, edges repeated, and slopes of the slopes."""

    def slope(x: np.ndarray) -> np.ndarray:
        return scipy.signal.savgol_filter(x, 5, 1, deriv=1, axis=0, mode="nearest")

    return np.concatenate([static, slope(static), slope(slope(static))], 1)


def kaldi_mfcc(sound: np.ndarray, ceps: int) -> np.ndarray:
    options = kaldi_native_fbank.MfccOptions()
    options.frame_opts.dither = 0
    options.num_ceps = ceps
    options.use_energy = False
    computer = kaldi_native_fbank.OnlineMfcc(options)
    computer.accept_waveform(16_000, sound.astype(np.float32).tolist())
    computer.input_finished()
    frames = [computer.get_frame(i) for i in range(computer.num_frames_ready)]
    return with_slopes(np.array(frames, np.float64))


@pytest.mark.parametrize("ceps", [13, 20])
@pytest.mark.parametrize("kind", hostile(400))
def test_mfcc_is_kaldis(kind: str, ceps: int) -> None:
    sound = hostile(20_117)[kind]
    ours = np.asarray(audio.mfcc(sound[None], ceps=ceps))[0]
    assert ours.shape == ((20_117 - 400) // 160 + 1, 3 * ceps)
    np.testing.assert_allclose(ours, kaldi_mfcc(sound, ceps), atol=1e-3, rtol=0)
    np.testing.assert_allclose(ours, mfcc_by_definition(sound, ceps), atol=1e-3, rtol=0)


@pytest.mark.parametrize("bins, hop", [(23, 160), (64, 160), (80, 320)])
def test_log_mel_is_kaldis(bins: int, hop: int) -> None:
    sound = hostile(8_000)["music"]
    ours = np.asarray(audio.log_mel(sound[None], bins=bins, hop=hop))[0]
    wanted = log_mel_by_definition(sound, bins)[:: hop // 160]
    np.testing.assert_allclose(ours, wanted, atol=1e-3, rtol=0)


def test_clips_of_a_batch_do_not_mix() -> None:
    clips = np.stack([music(4_000, seed) for seed in range(3)]) / 32768
    together = np.asarray(audio.mfcc(clips))
    for clip, features in zip(clips, together, strict=True):
        np.testing.assert_allclose(features, audio.mfcc(clip[None])[0], atol=1e-4)


@pytest.mark.parametrize("samples", [400, 401, 559, 560, 719, 720, 721, 879, 880, 1040, 5_001])
def test_each_encoder_frame_has_the_features_of_its_own_samples(samples: int) -> None:
    sound = jnp.asarray(music(samples)[None] / 32768)
    frames = audio.frame_count(samples)
    targets = audio.targets_at_50hz(audio.log_mel(sound), frames)
    assert targets.shape == (1, frames, 23)
    own = [audio.log_mel(sound[:, 320 * i : 320 * i + 400])[:, 0] for i in range(frames)]
    np.testing.assert_allclose(targets[0], np.concatenate(own), atol=1e-3)


def test_features_of_other_audio_are_refused() -> None:
    features = jnp.zeros((1, 20, 39))
    for frames in (9, 11):
        with pytest.raises(ValueError, match=f"20 features at 100 Hz do not fit {frames} encoder"):
            audio.targets_at_50hz(features, frames)


def test_frame_count_is_that_of_the_seven_convolutions() -> None:
    for samples in [400, 719, 720, 721, 81_999, 82_000, 480_000]:
        frames = samples
        for kernel, stride in [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]:
            frames = (frames - kernel) // stride + 1
        assert audio.frame_count(samples) == frames


def test_crop_samples_is_the_least_that_gives_the_frames() -> None:
    for frames in (1, 2, 256, 1496):
        samples = audio.crop_samples(frames)
        assert audio.frame_count(samples) == frames
        assert samples == 400 or audio.frame_count(samples - 1) == frames - 1


def test_audio_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="399 samples holds no encoder frame"):
        audio.frame_count(399)
    with pytest.raises(ValueError, match="0 frames is empty"):
        audio.crop_samples(0)
    with pytest.raises(ValueError, match="399 samples is shorter than one window"):
        audio.mfcc(jnp.zeros((1, 399)))
    with pytest.raises(ValueError, match="ceps is 24"):
        audio.mfcc(jnp.zeros((1, 400)), ceps=24)
    with pytest.raises(ValueError, match="bins is 200"):
        audio.log_mel(jnp.zeros((1, 400)), bins=200)


def test_normalize_is_that_of_transformers() -> None:
    clips = np.stack([music(3_000, 0) / 32768, 0.01 * music(3_000, 1) / 32768 + 0.3])
    theirs = Wav2Vec2FeatureExtractor(do_normalize=True)(list(clips), sampling_rate=16_000)
    ours = audio.normalize(jnp.asarray(clips))
    np.testing.assert_allclose(ours, np.stack(theirs["input_values"]), atol=1e-4)
    assert not np.any(audio.normalize(jnp.zeros((1, 400))))


@pytest.mark.parametrize(
    ("level", "quieter"), [(-20, 0.0005), (-26, 0.002), (-40, 0.046), (-50, 0.29)]
)
def test_fairseq_makes_quiet_clips_quieter(level: float, quieter: float) -> None:
    """The deviation that `audio.normalize` names, against the layer_norm that fairseq calls."""
    noise = np.random.default_rng(0).standard_normal((1, 16_000))
    clip = (10 ** (level / 20) * noise).astype(np.float32)
    theirs = torch.nn.functional.layer_norm(torch.tensor(clip), clip.shape[1:])
    ratio = np.linalg.norm(theirs) / np.linalg.norm(audio.normalize(jnp.asarray(clip)))
    assert 1 - ratio == pytest.approx(quieter, rel=0.04)


def test_to_float_scales_int16_and_nothing_else() -> None:
    ours = audio.to_float(jnp.array([[-32768, -1, 0, 32767]], jnp.int16))
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, [[-1, -1 / 32768, 0, 32767 / 32768]])
    with pytest.raises(ValueError, match="float32"):
        audio.to_float(ours)


def test_mfcc_costs_a_small_share_of_a_training_step() -> None:
    sound = jax.ShapeDtypeStruct((4, 5 * 16_000), jnp.float32)
    flops = audio.mfcc.lower(sound, ceps=20).compile().cost_analysis()["flops"] / (4 * 5)
    assert 20e6 < flops < 0.03 * BASE_STEP_FLOPS
