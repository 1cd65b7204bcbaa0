"""What HuBERT's labels are made of: Kaldi's MFCC, or a layer of a frozen encoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicssl.exchange import pretrained
from musicssl.objectives import codebook, hubert, kmeans
from musicssl.runtime import sharding
from tests.support import torch_models
from tests.support.hubert_small import config_of, kaldi_mfcc


def spotlights(samples: int) -> np.ndarray:
    """A clip an encoder frame, [t, n]: faint but in that frame's own 400 samples, else loud."""
    rng = np.random.default_rng(samples)
    frames = (samples - 400) // 320 + 1
    sound = rng.uniform(-0.5, 0.5, (frames, samples))
    for frame in range(frames):
        sound[frame, 320 * frame : 320 * frame + 400] *= 1e-4
    return sound.astype(np.float32)


@pytest.mark.parametrize("samples", [3280, 3359, 3361, 3599])
def test_labels_belong_to_the_samples_of_their_own_frame(samples):
    """10 frames and none to all but one sample of another hop: right at both ends of the crop.

    A window that is 10 ms early or late holds loud samples, so only the frame whose samples are
    all faint is nearer to the faint row. The rows' slopes are alike and tell nothing.
    """
    sound = spotlights(samples)
    features = hubert.features(config_of(), "mfcc", {}, jnp.asarray(sound))
    assert features.shape == (10, 10, 39)
    faint = kaldi_mfcc(sound[:1, :400], 13)[0, 0]
    loud = kaldi_mfcc(sound[1:2, :400], 13)[0, 0]
    assert loud[0] - faint[0] > 50  # the first coefficient is loudness
    codes = np.stack([faint + 0.3 * (loud - faint), faint])  # what is nearly faint is loud
    codes[:, 13:] = 0
    labels = kmeans.assign(codes.astype(np.float32), features)
    np.testing.assert_array_equal(labels, np.eye(10, dtype=int))


@pytest.mark.parametrize("ceps", [13, 20])
def test_features_are_kaldis_at_50_hz(ceps):
    sound = 0.1 * torch_models.noise(8_081)
    features = hubert.features(config_of(teacher__ceps=ceps), "mfcc", {}, jnp.asarray(sound))
    assert features.shape == (2, 25, 3 * ceps)
    np.testing.assert_allclose(features, kaldi_mfcc(sound, ceps), atol=1e-3)


@pytest.mark.parametrize("layer, normalize", [(0, False), (1, True), (2, False)])
def test_features_of_a_layer_are_those_of_the_frozen_encoder(tmp_path, layer, normalize):
    model = torch_models.small("hubert")
    path = torch_models.save(model, tmp_path / "model", normalize=normalize)
    sound = 0.05 + 0.1 * torch_models.noise(8_081)
    heard = (sound - sound.mean(1, keepdims=True)) / sound.std(1, keepdims=True)
    theirs = torch_models.hidden_states(model, heard if normalize else sound)[layer]
    config = config_of(teacher__feature="layer", teacher__encoder=str(path), teacher__layer=layer)
    frozen, digest = codebook.frozen_encoder(config, sharding.make_mesh())
    assert digest == pretrained.load_encoder(path).digest
    features = jax.jit(functools.partial(hubert.features, config, "layer"))(
        frozen, jnp.asarray(sound)
    )
    assert features.shape == (2, 25, 48)
    np.testing.assert_allclose(features, theirs, atol=1e-4)
