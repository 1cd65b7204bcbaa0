"""musicHuBERT: HuBERT on music (arXiv:2307.05161).

    python -m musicssl.main --config=configs/musichubert.py:k500
    python -m musicssl.main --config=configs/musichubert.py:k2000_iter2 \\
        --config.teacher.encoder=runs/musichubert-k2000_iter1
    python -m musicssl.main --config=configs/musichubert.py:demo      # both iterations, on a CPU
    python -m musicssl.main --config=configs/musichubert.py:demo_filterbank
    python -m musicssl.main --config=configs/musichubert.py:small     # about an hour on two cores
    python -m musicssl.main --config=configs/musichubert.py:demo_pitch
    python -m musicssl.main --config=configs/musichubert.py:demo_multi
    python -m musicssl.main --config=configs/musichubert.py:k500_mfcc60_demo

Hyper-parameters: fairseq examples/hubert/config/pretrain/hubert_base_librispeech.yaml; the four
variants: MARBLE benchmark/models/hubert. The paper's batch is inferred from its checkpoints' epoch
and update counters: about 32 clips of 30 s, four on each of eight GPUs (`mask.equal_counts`). The
layer that the paper clusters for its second iteration is not known; 6 is HuBERT's own.

`large` is not in the paper: it is this recipe with the encoder of HuBERT large (arXiv:2106.07447,
table 1; pre-norm blocks, layer-norm stem), 317 million parameters, for planning.

Crops are 1496 frames (29.9 s) instead of 1499, since accelerators tile multiples of 8 well.

Cost: 250k steps of 16 minutes of audio are 66k audio-hours, about 1.2e19 FLOP.

`demo` runs both iterations in minutes: 1 million parameters, 32 clusters, 400 and 300 steps of 32
crops of 0.8 s. It has many short crops, since a few hundred steps learn little from a few long
clips. Besides size and schedule, two values differ from the recipe: mask.probability is 0.65
instead of 0.8, and hubert.feature_penalty is 0.1 instead of 10, which would hold the stem near zero
for most of such a short run.

`demo_pitch` is not in the paper: it is one iteration of 800 steps with labels that describe pitch,
which MFCCs do not (`spectra.partials`; the teacher of MERT, arXiv:2306.00107, has such a part too).
Its other settings were chosen by validation scores, so that such a small encoder learns from these
labels in so few steps: its stem keeps its random values, which halves the cost of a step, spans are
short, and there is no dropout.

`demo_filterbank` is the demo that learns most in its minutes; it is not in the paper either. Its
stem starts as a bank of band-pass filters (`musicssl.model.filterbank`) and is trained from there,
and it predicts four targets at once, which describe pitches, pitch classes, timbre and onsets.
musicssl/probing/results.md shows what was tried, on clips that are in no test.

`small` is the same idea for about an hour on two CPU cores, including data. It has four layers of
width 256 (4 million parameters), hears 1.3 s at a time, predicts several targets at once, and
trains its stem, which starts as the filter bank. Half of what it hears is varied music
(data_pipelines/synth_music/README.md), the other half the demo's.

`reference` is the same idea at base size, for an hour on one GPU including data
(launch/first_hour.sh). It has not been run to completion.

`demo_multi` and `demo_random` are the demo's first iteration with several targets at once and a
head for each. They show what can be written in `teacher.targets` (musicssl/objectives/targets.py).
The first combines a random projection of the mel spectrum (BEST-RQ, arXiv:2202.01855) with k-means
of chroma and of onsets. The second has two random codebooks on each of two features, as OMAR-RQ has
on several (arXiv:2507.03482), and fits nothing. Neither was tuned.

Each of the paper's variants has a small one for launch/study.py, NAME_demo: the demo's first
iteration at half its steps, with what the variant changes. If the paper's value does not fit the
demo, SCALED has one that does: four times the clusters, 1.6 times the steps, the demo's layer.
"""

from typing import Any

import ml_collections

from configs import common

Leaves = dict[str, Any]  # values by the dotted names of a configuration's leaves

TINY: Leaves = {
    "batch_size": 32,
    "precision": "float32",
    "log_every": 20,
    "checkpoint.every": 100,
    "data.name": "synth_music",
    "data.crop_frames": 40,
    "encoder.layers": 2,
    "encoder.width": 192,
    "encoder.heads": 4,
    "encoder.ffn_width": 768,
    "encoder.stem_width": 64,
    "encoder.pos_conv_kernel": 16,
    "mask.probability": 0.65,
    "mask.equal_counts": 8,
    "optim.warmup_steps": 30,
    "optim.learning_rate": 1e-3,
    "hubert.feature_penalty": 0.1,
    "teacher.clusters": 32,
    "teacher.batches": 20,
    "teacher.sample": 20_000,
    "teacher.restarts": 3,
    "teacher.passes": 5,
}
LARGE: Leaves = {
    "encoder.layers": 24,
    "encoder.width": 1024,
    "encoder.heads": 16,
    "encoder.ffn_width": 4096,
    "encoder.stem_norm": "layer",
    "encoder.stem_bias": True,
    "encoder.pre_norm": True,
    "encoder.feature_grad_mult": 1.0,
    "hubert.final_dim": 768,
}
SECOND: Leaves = {"teacher.feature": "layer"}
PROBES: Leaves = {"probe.at_end": True, "probe.kind": "ridge"}
# The paper's variants, which launch/study.py compares. A new one needs a line here and one there.
STUDIED: dict[str, Leaves] = {
    "k500": {},
    "k500_mfcc60": {"teacher.ceps": 20},
    "k2000_iter1": {"teacher.clusters": 2000},
    "k2000_iter2": {"teacher.clusters": 2000, "steps": 400_000} | SECOND,
}
NO_DROPOUT: Leaves = {
    "encoder.dropout": 0.0,
    "encoder.attention_dropout": 0.0,
    "encoder.input_dropout": 0.0,
    "encoder.layerdrop": 0.0,
}
PITCH: Leaves = NO_DROPOUT | {
    "steps": 800,
    "encoder.feature_grad_mult": 0.0,
    "mask.probability": 0.5,
    "mask.span": 4,
    "teacher.feature": "partials",
    "teacher.clusters": 128,
}
FILTERBANK: Leaves = PITCH | {
    "steps": 400,
    "log_every": 25,
    "checkpoint.every": 200,
    "encoder.stem_start": "filterbank",
    "encoder.stem_width": 96,
    "encoder.feature_grad_mult": 1.0,
    "hubert.min_label_perplexity": 1.2,  # onsets are rare: most frames have the label for none
    "teacher.feature": "",
    "teacher.targets": "cqt:kmeans:128,chroma:kmeans:64,mel:kmeans:128,onset:kmeans:16",
    "validate.every": 200,
}
MULTI: Leaves = {
    "steps": 400,
    "teacher.feature": "",
    "teacher.targets": "mel:random:64,chroma:kmeans:32,onset:kmeans:16",
    "teacher.weights": (1.0, 1.0, 0.5),
}
RANDOM: Leaves = {
    "steps": 400,
    "teacher.feature": "",
    "teacher.targets": "mel:random:2x64,cqt:random:2x64",
}
SMALL: Leaves = NO_DROPOUT | {
    "steps": 1_800,
    "batch_size": 32,
    "precision": "float32",
    "log_every": 50,
    "checkpoint.every": 200,
    "data.mix": "synth_music/16khz_varied:1,synth_music:1",
    "data.crop_frames": 64,
    "encoder.layers": 4,
    "encoder.width": 256,
    "encoder.heads": 4,
    "encoder.ffn_width": 1024,
    "encoder.stem_start": "filterbank",
    "encoder.stem_width": 128,
    "encoder.feature_grad_mult": 1.0,
    "encoder.pos_conv_kernel": 32,
    "mask.probability": 0.5,
    "mask.span": 4,
    "mask.equal_counts": 8,
    "optim.warmup_steps": 150,
    "optim.learning_rate": 1e-3,
    "hubert.feature_penalty": 0.1,
    "hubert.min_label_perplexity": 1.2,  # onsets are rare: most frames have the label for none
    "teacher.feature": "",
    "teacher.targets": (
        "cqt:kmeans:256,chroma:kmeans:128,mel:kmeans:256,mfcc:kmeans:256,onset:kmeans:32"
    ),
    "teacher.weights": (1.0, 1.0, 1.0, 0.5, 1.0),
    "teacher.batches": 30,
    "teacher.sample": 30_000,
    "teacher.restarts": 3,
    "teacher.passes": 5,
    "validate.every": 300,
}
REFERENCE: Leaves = NO_DROPOUT | {
    "steps": 8_000,
    "batch_size": 64,
    "log_every": 100,
    "checkpoint.every": 1_000,
    "data.name": "synth_music/16khz_varied",
    "data.crop_frames": 256,
    "encoder.stem_start": "filterbank",
    "mask.probability": 0.65,
    "mask.span": 6,
    "optim.warmup_steps": 600,
    "optim.learning_rate": 3e-4,
    "hubert.feature_penalty": 0.0,
    "hubert.min_label_perplexity": 1.2,  # onsets are rare: most frames have the label for none
    "teacher.feature": "",
    "teacher.targets": "partials:kmeans:256,mel:kmeans:256,chroma:kmeans:128,onset:kmeans:32",
    "teacher.batches": 20,
    "teacher.sample": 50_000,
    "teacher.restarts": 3,
    "teacher.passes": 5,
}
STUDY: Leaves = TINY | {"steps": 200}
SCALED: dict[str, Leaves] = {
    "k2000_iter1": {"teacher.clusters": 128},
    "k2000_iter2": {"teacher.clusters": 128, "steps": 320, "teacher.layer": 2} | SECOND,
}
VARIANTS: dict[str, Leaves] = STUDIED | {
    "large": LARGE,
    "reference": REFERENCE,
    "small": SMALL | PROBES,
    "demo": TINY | {"steps": 400, "then": "demo_iter2"},
    "demo_pitch": TINY | PITCH | PROBES,
    "demo_filterbank": TINY | FILTERBANK | PROBES,
    "demo_multi": TINY | MULTI | PROBES,
    "demo_random": TINY | RANDOM | PROBES,
    "demo_iter2": TINY | SECOND | PROBES | {"steps": 300, "teacher.layer": 2},
}
VARIANTS |= {f"{name}_demo": STUDY | SCALED.get(name, STUDIED[name]) for name in STUDIED}


def get_config(variant: str = "k500") -> ml_collections.ConfigDict:
    """Return the configuration of one variant, locked."""
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r} in configs/musichubert.py: use {list(VARIANTS)}")
    config = common.get_config()
    config.name = "musichubert"
    config.variant = variant
    config.method = "hubert"
    config.seed = 1337
    config.steps = 250_000
    config.batch_size = 32
    config.data.normalize = False

    config.encoder.stem_norm = "group"
    config.encoder.pos_conv_depth = 0
    config.encoder.pos_conv_kernel = 128
    config.encoder.input_dropout = 0.1
    config.encoder.feature_grad_mult = 0.1

    config.mask.probability = 0.8
    config.mask.min_spans = 2
    config.mask.equal_counts = 4

    config.optim.schedule = "polynomial"
    config.optim.warmup_steps = 32_000
    config.optim.clip_norm = 10.0

    config.hubert = ml_collections.ConfigDict()
    config.hubert.final_dim = 256
    config.hubert.temperature = 0.1
    config.hubert.feature_penalty = 10.0
    config.hubert.unmasked_accuracy = False  # True also computes the logits of all other frames
    config.hubert.min_label_perplexity = 2.0  # below it, labels are degenerate and the run stops

    config.teacher = teacher = ml_collections.ConfigDict()  # where labels come from
    teacher.feature = "mfcc"  # or "partials", which describe pitch; or "layer", of teacher.encoder
    teacher.targets = ""  # or several instead: "mel:random:2x512,chroma:kmeans:200,onset"
    teacher.weights = ()  # of the targets' losses, in their order; if empty, each is 1
    teacher.projection = 16  # dimensions of a random projection
    teacher.ceps = 13  # coefficients: 13 give 39 features with both differences, 20 give 60
    teacher.encoder = ""  # a workdir, a Hugging Face directory, hf:ORG/NAME, a fairseq file
    teacher.layer = 6  # counted from 1; 0 is the transformer's input
    teacher.clusters = 500  # codes, unless teacher.targets says how many
    teacher.batches = 375  # global batches in a pass of k-means: 100 h of audio, a tenth of 1000 h
    teacher.sample = 200_000  # frames from which the codebook is seeded
    teacher.restarts = 20
    teacher.polish = 20  # passes over the sample
    teacher.passes = 20  # the most passes over the batches
    teacher.tolerance = 1e-3  # stop when inertia falls by less than this share
    config.update_from_flattened_dict(VARIANTS[variant])
    return config.lock()
