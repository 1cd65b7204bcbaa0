"""The statistics of the stem's first norm."""

import numpy as np

from musicssl.model import first_norm
from tests.support.stems import layers, sound


def test_moments_of_windows_by_hand():
    """Mean and deviation over time of what the convolution gives, in float64."""
    x, layer = sound(4000), layers(False, 1)[0]
    mean, inverse = first_norm.over_time(x, layer.kernel)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(x, np.float64), 10, axis=1)[
        :, ::5
    ]
    y = windows @ np.asarray(layer.kernel[:, 0], np.float64)
    np.testing.assert_allclose(mean[:, 0], y.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(inverse[:, 0], (y.var(axis=1) + 1e-5) ** -0.5, rtol=1e-3)
