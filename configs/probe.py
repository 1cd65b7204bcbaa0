"""The evaluator: MARBLE's constrained protocol (arXiv:2306.10548) on frozen encoders.

    python -m musicssl.probe --config=configs/probe.py --config.encoder=runs/music2vec-demo
    python -m musicssl.probe --config=configs/probe.py --config.encoder=DIR \\
        --config.tasks=gtzan_genre,giantsteps_key --config.data_dir=DATA
    python -m musicssl.probe --config=configs/probe.py --compare runs/a/probe runs/b/probe

"full" is that protocol; musicssl/probing/protocol.md says where a task differs from MARBLE's code.
"quick" takes minutes: it trains linear probes on standardised features, which need few epochs, with
one learning rate and three seeds. "ridge" is as quick: it solves ridge regression in closed form on
every layer and on all of them concatenated, without learning rates or seeds. The demos end with it,
and compare their encoder with random initial values and a log-mel baseline. "polyphony" runs the
tasks on polyphony, with a hidden layer: which interval or chord sounds is a relation between notes
that may be anywhere, so no linear probe of a spectrum can tell it.
"""

import ml_collections

QUICK = {"kind": "linear", "standardise": True, "learning_rates": (5e-3,), "epochs": 15}
POLYPHONY = QUICK | {"tasks": "poly", "kind": "mlp", "learning_rates": (2e-3,), "epochs": 20}
RIDGE = {"kind": "ridge"}
VARIANTS = {"full": {}, "quick": QUICK, "ridge": RIDGE, "polyphony": POLYPHONY}


def settings() -> ml_collections.ConfigDict:
    """Return what is probed and how; training runs have these leaves in their section `probe`."""
    config = ml_collections.ConfigDict()
    config.tasks = "synth"  # tasks, or suites (mir, synth, poly, rhythm), of probing/tasks.py
    config.data_dir = ""  # where data sets are; by default that of the training run, or data
    config.limit = 0  # how many records of each split are used; 0 for all
    config.kind = "mlp"  # probes with a hidden layer; or "linear"; or "ridge", in closed form
    config.standardise = False  # each channel at zero mean, unit variance over training windows
    config.layers = "all"  # or a list such as 0,6,12,sum (ridge: 12,concat); baselines have but one
    config.penalties = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)  # of ridge regression
    config.learning_rates = (5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
    config.seeds = (1, 2, 3)
    config.epochs = 0  # the most epochs; 0 for the task's own number
    config.batch_size = 64  # windows in an update, or files with all their windows, by task
    config.windows = 8  # in a batch of extraction
    config.memory_gib = 12.0  # of features in memory; larger ones are read during training
    return config


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """Return the configuration of one variant, locked."""
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r} in configs/probe.py: use {list(VARIANTS)}")
    config = settings()
    config.encoder = ""  # a workdir, a directory, hf:ORG/NAME, python:FILE.py:NAME, logmel
    config.step = ""  # of a workdir: a number, or best (by validate.score); by default the last
    config.beside = ""  # encoders to compare with, comma-separated; random: untrained, same shape
    config.also = ""  # further measurements of the features: knn, few_shot, geometry
    config.deform = ""  # also test on deformed audio: noise:20,mp3:64,gain:-12,pitch:50c,speed:1.02
    config.results = ""  # where results go; by default <workdir>/probe or results/<encoder>
    config.cache = "features"  # where features are kept
    config.precision = "float32"  # of the encoder
    config.mesh = ml_collections.ConfigDict({"fsdp": 1})
    config.update(VARIANTS[variant])
    return config.lock()
