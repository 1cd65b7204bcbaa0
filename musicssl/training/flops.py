"""Counts the floating-point operations of the models from their shapes; the only place that does.

A multiplication and an addition are two operations; norms, activations and softmax are not
counted, as is the custom for model FLOP utilisation (PaLM, arXiv:2204.02311, appendix B). Remat
and work for masked-out frames do not count either: the count is the model's, not the program's.
"""

import jax
import ml_collections

from musicssl import audio, spectra
from musicssl.model.stem import KERNELS, STRIDES
from musicssl.objectives import masking, targets

# Dense bf16 operations per second and chip (fp16 if the chip has no bf16), by jax's device_kind,
# from the vendors' data sheets.
_PEAKS = {
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
}


def stem_layers(encoder: ml_collections.ConfigDict, frames: int) -> list[float]:
    """Return the operations of one clip's forward pass in each of the stem's convolutions."""
    n, channels = audio.crop_samples(frames), 1
    layers = []
    for kernel, stride in zip(KERNELS, STRIDES, strict=True):
        n = (n - kernel) // stride + 1
        layers.append(2 * kernel * channels * encoder.stem_width * n)
        channels = encoder.stem_width
    return layers


def forward(encoder: ml_collections.ConfigDict, frames: int) -> dict[str, float]:
    """Return the operations of one clip's forward pass, by part of the encoder."""
    d, taps = encoder.width, max(1, encoder.pos_conv_depth) * encoder.pos_conv_kernel
    return {
        "stem": sum(stem_layers(encoder, frames)),
        "projection": 2 * encoder.stem_width * d * frames,
        "positional": 2 * taps * d // encoder.pos_conv_groups * d * frames,
        "attention": encoder.layers * (8 * d * d * frames + 4 * d * frames * frames),
        "ffn": encoder.layers * 4 * d * encoder.ffn_width * frames,
    }


def train_step(config: ml_collections.ConfigDict) -> float:
    """Return the operations of one step on the global batch."""
    return sum(train_parts(config).values())


def train_parts(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Return the operations of one step by part.

    What learns takes three passes, and what gives the targets takes one. data2vec 2.0's student
    takes its three for every copy of a clip, without the frames that the copy masks. HuBERT's heads
    see only the masked frames. The shape of a frozen encoder is not in the configuration: it counts
    as an encoder of this configuration's shape, up to the layer that is taken.
    """
    frames = config.data.crop_frames
    passes = forward(config.encoder, frames)

    clip = {name: 3 * n for name, n in passes.items()}
    if not config.encoder.feature_grad_mult:
        clip["stem"] = passes["stem"]
    teacher = passes["positional"] + passes["attention"] + passes["ffn"]
    if config.method == "data2vec":
        clip["head"] = 3 * 2 * config.encoder.width**2 * frames
        clip["teacher"] = teacher
    elif config.method == "data2vec2":
        clip |= _copies(config)
        clip["teacher"] = teacher
    elif config.method == "hubert":
        c, masked = config.hubert, masking.mask_capacity(frames, **config.mask)
        classes = [config.encoder.width + target.clusters for target in targets.of(config)]
        clip["head"] = 3 * 2 * c.final_dim * sum(classes) * masked
        clip["labels"] = _labels(config, passes)
    else:
        raise ValueError(f"no operations are counted for method {config.method!r}: add a case here")
    return {name: config.batch_size * n for name, n in clip.items()}


def _copies(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Return the operations of what data2vec 2.0 does to each copy of one clip, by part.

    The positional and the decoder's convolutions see all frames, the transformer only the visible
    ones, and the decoder's last layer the masked ones.
    """
    frames, copies = config.data.crop_frames, config.mask.copies
    masked = masking.masked_in_copy(frames, config.mask.probability, config.mask.inverse)
    visible, d, c = forward(config.encoder, frames - masked), config.encoder.width, config.decoder
    inputs = d + (c.layers - 1) * c.width  # of all the decoder's convolutions together
    convolutions = c.kernel * inputs // c.groups * c.width * frames
    passes = {
        "positional": forward(config.encoder, frames)["positional"],
        "attention": visible["attention"],
        "ffn": visible["ffn"],
        "head": 2 * (convolutions + c.width * d * masked),
    }
    return {name: 3 * copies * n for name, n in passes.items()}


def predictions(config: ml_collections.ConfigDict) -> float:
    """Return for how many frames one step predicts targets, on average.

    The counts of span masks are those before they are made equal.
    """
    frames, mask = config.data.crop_frames, config.mask
    if "copies" in mask:
        masked = masking.masked_in_copy(frames, mask.probability, mask.inverse)
        return config.batch_size * mask.copies * masked
    expected = masking.expected_count(
        frames, probability=mask.probability, span=mask.span, min_spans=mask.min_spans
    )
    return config.batch_size * expected


def _labels(config: ml_collections.ConfigDict, passes: dict[str, float]) -> float:
    """Return the operations of one clip's HuBERT labels: features, then the nearest codes."""
    t, frames = config.teacher, config.data.crop_frames
    wanted = targets.of(config)
    layer = passes["stem"] + passes["projection"] + passes["positional"]
    layer += t.layer / config.encoder.layers * (passes["attention"] + passes["ffn"])
    total = 0.0
    for name in dict.fromkeys(target.feature for target in wanted):
        total += layer if name == "layer" else _spectral(name, t.ceps, frames)
    for target in wanted:
        width = targets.width(config, target)
        products = width * target.clusters
        if target.quantizer == "random":
            products = width * t.projection + t.projection * target.clusters
        total += 2 * products * frames
    return total


def _spectral(name: str, ceps: int, frames: int) -> float:
    """Return the operations of one clip's feature of spectra.NAMES."""
    spectrum, bins = audio.WINDOW * (audio.FFT - 2), audio.FFT // 2 - 1
    cepstral = (spectrum + bins * 23 + 23 * ceps) * (2 * frames - 1)
    bands = spectrum + bins * spectra.BANDS
    if name == "mfcc":
        return 2 * cepstral
    if name == "partials":
        return 2 * (cepstral + bands * (2 * frames - 1))
    if name in ("mel", "onset"):
        return 2 * bands * frames
    return 2 * spectra.filter_taps() * frames


def peak(device: jax.Device) -> float | None:
    """Return the operations per second of this device's data sheet; None if it is not known."""
    return peak_of(device.device_kind)


def peak_of(device_kind: str) -> float | None:
    """Return `peak` of a kind of device, named as in jax."""
    kind = f"{device_kind} ".replace("-", " ")
    names = [name for name in _PEAKS if kind.startswith(f"{name} ")]  # an L40 is not an L4
    return _PEAKS[max(names, key=len)] if names else None
