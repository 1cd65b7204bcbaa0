"""A convolutional network on a mel spectrogram, in JAX: --config.encoder=python:mel_cnn.py:encode

Audio is at 22.05 kHz, and a frame is 1,024 samples long: 21.5 frames a second. It is a function
with attributes. It takes `samples` and hides what is after a window's end, so that windows of
several lengths share a batch, and a program. Its weights are random.
"""

import jax
import jax.numpy as jnp
import librosa

RATE, HOP, FFT, BANDS, WIDTH = 22_050, 512, 2048, 64, 48
MEL = librosa.filters.mel(sr=RATE, n_fft=FFT, n_mels=BANDS).T  # [bins, bands]
KERNELS = [  # [taps, from, to]
    jax.random.normal(jax.random.key(i), (3, width, WIDTH)) / (3 * width) ** 0.5
    for i, width in enumerate((BANDS, WIDTH))
]


def encode(audio, samples):
    """Return the outputs of both convolutions, [b, t, 48] each."""
    return forward(audio, samples, KERNELS)


encode.sample_rate, encode.frame_rate, encode.layers, encode.width = (
    RATE,
    RATE / (2 * HOP),
    2,
    WIDTH,
)


@jax.jit
def forward(audio, samples, kernels):
    """Frames of the spectrogram are centred on multiples of HOP; the first layer strides over 2."""
    frame = jnp.arange(1, audio.shape[1] // HOP)
    at = frame[:, None] * HOP + jnp.arange(-FFT // 2, FFT // 2)  # [t, taps]
    sound = jnp.pad(audio, ((0, 0), (FFT, FFT)))[:, at + FFT] * jnp.hanning(FFT)
    x = jnp.log(jnp.abs(jnp.fft.rfft(sound)) ** 2 @ MEL + 1e-5)  # [b, t, bands]
    real = (frame < (samples // HOP)[:, None])[..., None]
    states = []
    for kernel, stride in zip(kernels, (2, 1), strict=True):
        layout = {"padding": [(1, 1)], "dimension_numbers": ("NWC", "WIO", "NWC")}
        x = jax.lax.conv_general_dilated(jnp.where(real, x, 0), kernel, (stride,), **layout)
        real = real[:, ::stride]
        states.append(x := jax.nn.gelu(x))
    return states
