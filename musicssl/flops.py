"""Floating-point operations of the models, counted from their shapes: the one owner of FLOPs.

A multiplication and an addition are two operations; norms, activations and softmax are not
counted, as is the custom for model FLOP utilisation (PaLM, arXiv:2204.02311, appendix B). Remat
and work for masked-out frames do not count either: the count is the model's, not the program's.
"""

import jax
import ml_collections

from musicssl import audio
from musicssl.encoder import KERNELS, STRIDES

# Dense bf16 (fp16 where there is none) operations a second and chip, by jax's device_kind; from
# the vendors' data sheets.
PEAKS = {
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
}


def forward(encoder: ml_collections.ConfigDict, frames: int) -> dict[str, float]:
    """Operations of one clip's forward pass, by part of the encoder."""
    n, channels, stem = audio.crop_samples(frames), 1, 0
    for kernel, stride in zip(KERNELS, STRIDES, strict=True):
        n = (n - kernel) // stride + 1
        stem += 2 * kernel * channels * encoder.stem_width * n
        channels = encoder.stem_width
    d, taps = encoder.width, max(1, encoder.pos_conv_depth) * encoder.pos_conv_kernel
    return {
        "stem": stem,
        "projection": 2 * channels * d * frames,
        "positional": 2 * taps * d // encoder.pos_conv_groups * d * frames,
        "attention": encoder.layers * (8 * d * d * frames + 4 * d * frames * frames),
        "ffn": encoder.layers * 4 * d * encoder.ffn_width * frames,
    }


def train_step(config: ml_collections.ConfigDict) -> float:
    """Operations of one step on the global batch: three forward passes, and the teacher's one."""
    frames = config.data.crop_frames
    parts = forward(config.encoder, frames)
    clip = 3 * sum(parts.values())
    if config.method == "data2vec":
        clip += 3 * 2 * config.encoder.width**2 * frames  # the prediction head
        clip += parts["positional"] + parts["attention"] + parts["ffn"]
    return config.batch_size * clip


def peak(device: jax.Device) -> float | None:
    """Operations a second that the data sheet gives this device, None where it is not known."""
    kind = f"{device.device_kind} ".replace("-", " ")
    names = [name for name in PEAKS if kind.startswith(f"{name} ")]  # an L40 is no L4
    return PEAKS[max(names, key=len)] if names else None
