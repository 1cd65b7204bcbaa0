"""music2vec2: data2vec 2.0 (arXiv:2212.07525) with music2vec's encoder, which no paper has trained.

    python -m musicssl.main --config=configs/music2vec2.py            # base, 400k steps
    python -m musicssl.main --config=configs/music2vec2.py:demo       # minutes on a CPU

Hyper-parameters: fairseq examples/data2vec/config/v2/base_audio_only_task.yaml. As there on eight
GPUs, an update is 8 minutes of audio, and each clip has 8 copies that mask half of it. Crops are 8
frames shorter than music2vec's: 1488 frames (29.8 s), of which a copy shows 744. Both numbers are
multiples of 8, which accelerators tile well. The recipe masks blocks of frames; the paper also
describes blocks that stay visible, which `mask.inverse` draws.

Cost: 400k steps are 53k audio-hours, about 2.9e19 FLOP; `python -m musicssl.plan` compares the cost
of a prediction with data2vec 1.0's.
"""

from typing import Any

import ml_collections

from configs import common

Leaves = dict[str, Any]  # values by the dotted names of a configuration's leaves

DEMO: Leaves = {
    "steps": 300,
    "batch_size": 8,
    "precision": "float32",
    "log_every": 10,
    "checkpoint.every": 50,
    "data.name": "synth_music",
    "data.crop_frames": 96,
    "encoder.layers": 4,
    "encoder.width": 192,
    "encoder.heads": 4,
    "encoder.ffn_width": 768,
    "encoder.stem_width": 64,
    "mask.copies": 4,
    "decoder.width": 96,
    "optim.warmup_steps": 30,
    "optim.learning_rate": 1e-3,
    "data2vec.top_layers": 3,
    "data2vec.ema_start": 0.99,
    "data2vec.ema_end": 0.999,
    "data2vec.ema_steps": 200,
    "data2vec.guard_after": 100,
    "probe.at_end": True,
    "probe.kind": "ridge",
    "probe.limit": 96,
}
VARIANTS: dict[str, Leaves] = {"base": {}, "demo": DEMO}


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Return the configuration of one variant, locked."""
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r} in configs/music2vec2.py: use {list(VARIANTS)}")
    config = common.get_config()
    config.name = "music2vec2"
    config.variant = variant
    config.method = "data2vec2"
    config.batch_size = 16
    config.data.crop_frames = 1488

    config.mask = mask = ml_collections.ConfigDict()  # arguments of objectives.masking.block_mask
    mask.copies = 8  # masked copies of each clip
    mask.probability = 0.5
    mask.span = 5  # frames in a block
    mask.adjust = 0.05  # added to the probability, since blocks overlap
    mask.inverse = False  # whether blocks stay visible, instead of being masked

    config.optim.schedule = "cosine"
    config.optim.learning_rate = 7.5e-4
    config.optim.warmup_steps = 8_000

    config.decoder = decoder = ml_collections.ConfigDict()  # fields of objectives.data2vec2.Decoder
    decoder.layers = 4
    decoder.width = 384
    decoder.kernel = 7
    decoder.groups = 16
    decoder.dropout = 0.1  # of its input
    decoder.noise = 0.01  # standard deviation of the noise in masked frames

    config.data2vec = ml_collections.ConfigDict()  # as data2vec 1.0 reads it
    config.data2vec.top_layers = 8  # blocks whose FFN outputs are averaged into targets
    config.data2vec.ema_start = 0.999
    config.data2vec.ema_end = 0.99999
    config.data2vec.ema_steps = 75_000
    config.data2vec.min_target_std = 0.1  # below these values a run has collapsed and stops
    config.data2vec.min_prediction_std = 0.01
    config.data2vec.guard_after = 5_000  # steps before the guards are active
    config.update_from_flattened_dict(VARIANTS[variant])
    return config.lock()
