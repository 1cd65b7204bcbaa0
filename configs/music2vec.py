"""music2vec: data2vec 1.0 on music (arXiv:2307.05161).

    python -m musicssl.main --config=configs/music2vec.py             # vanilla, 400k steps
    python -m musicssl.main --config=configs/music2vec.py:prob80      # one of the ablations
    python -m musicssl.main --config=configs/music2vec.py:demo        # minutes on a CPU
    python -m musicssl.main --config=configs/music2vec.py:prob80_demo # an ablation of the demo

Hyper-parameters: fairseq examples/data2vec/config/audio/pretraining/base_librispeech.yaml; the
eight variants: MARBLE benchmark/models/data2vec. The paper's batch is inferred from its
checkpoints' epoch and update counters: 16 GPUs of 3.8 million samples, about an hour of audio an
update at every crop length, that is 112 clips of 30 s or 752 of 5 s. `mask.equal_counts` is the
number of clips that one of those GPUs held, 7 or 47.

Crops are 1496 or 256 frames (29.9 s, 5.1 s) instead of 1499 or 249, since accelerators tile
multiples of 8 well.

`large` is not in the paper: it is the recipe with the sizes of the families' large models, 314
million parameters, for planning.

Cost: 400k steps of an hour of audio are 420k audio-hours, about 9e19 FLOP.

Each of the paper's variants has a small one for launch/study.py, NAME_demo: the demo at half its
steps and half its batch, with what the variant changes. If the paper's value does not fit the demo,
SCALED has one that does: twice the steps; all of the blocks; crops of a quarter of the length with
as much audio per update (a sixth, as in the paper, would be hardly longer than a span).
"""

from typing import Any

import ml_collections

from configs import common

Leaves = dict[str, Any]  # values by the dotted names of a configuration's leaves

# The paper's variants, which launch/study.py compares. A new one needs a line here and one there.
STUDIED: dict[str, Leaves] = {
    "vanilla": {},
    "800k": {"steps": 800_000},
    "crop5s": {"batch_size": 752, "data.crop_frames": 256, "mask.equal_counts": 47},
    "prob50": {"mask.probability": 0.5},
    "prob80": {"mask.probability": 0.8},
    "span5": {"mask.span": 5},
    "span15": {"mask.span": 15},
    "target12": {"data2vec.top_layers": 12},
}
LARGE: Leaves = {
    "encoder.layers": 24,
    "encoder.width": 1024,
    "encoder.heads": 16,
    "encoder.ffn_width": 4096,
}
DEMO: Leaves = {
    "steps": 300,
    "batch_size": 16,
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
    "mask.equal_counts": 8,
    "optim.phases": (0.1, 0.5, 0.4),
    "optim.learning_rate": 1e-3,
    "data2vec.top_layers": 3,
    "data2vec.ema_start": 0.99,
    "data2vec.ema_end": 0.999,
    "data2vec.ema_steps": 200,
    "data2vec.guard_after": 100,
}
STUDY: Leaves = DEMO | {"steps": 150, "batch_size": 8, "data2vec.ema_steps": 100}
SCALED: dict[str, Leaves] = {
    "800k": {"steps": 300},
    "crop5s": {"batch_size": 32, "data.crop_frames": 24, "mask.equal_counts": 32},
    "target12": {"data2vec.top_layers": 4},
}
PROBES: Leaves = {"probe.at_end": True, "probe.kind": "ridge", "probe.limit": 96}
VARIANTS: dict[str, Leaves] = STUDIED | {"large": LARGE, "demo": DEMO | PROBES}
VARIANTS |= {f"{name}_demo": STUDY | SCALED.get(name, STUDIED[name]) for name in STUDIED}


def get_config(variant: str = "vanilla") -> ml_collections.ConfigDict:
    """Return the configuration of one variant, locked."""
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r} in configs/music2vec.py: use {list(VARIANTS)}")
    config = common.get_config()
    config.name = "music2vec"
    config.variant = variant
    config.optim.phases = (0.03, 0.9, 0.07)  # warm-up, constant, decay: shares of steps
    config.optim.end_scale = 0.01  # of the peak, at the start and at the end
    config.data2vec = ml_collections.ConfigDict()
    config.data2vec.top_layers = 8  # blocks whose FFN outputs are averaged into targets
    config.data2vec.ema_start = 0.999
    config.data2vec.ema_end = 0.9999
    config.data2vec.ema_steps = 30_000
    config.data2vec.min_target_std = 0.1  # below these values a run has collapsed and stops
    config.data2vec.min_prediction_std = 0.01
    config.data2vec.guard_after = 5_000  # steps before the guards are active
    config.update_from_flattened_dict(VARIANTS[variant])
    return config.lock()
