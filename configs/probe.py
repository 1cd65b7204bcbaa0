"""The evaluator: MARBLE's constrained protocol (arXiv:2306.10548) on frozen encoders.

    python -m musicssl.probe --config=configs/probe.py --config.encoder=runs/music2vec-demo
    python -m musicssl.probe --config=configs/probe.py --config.encoder=DIR \\
        --config.tasks=gtzan_genre,giantsteps_key --config.data_dir=DATA
    python -m musicssl.probe --config=configs/probe.py --compare runs/a/probe runs/b/probe

"full" is that protocol; musicssl/probing/README.md says where a task differs from MARBLE's code.
"quick" is a look within minutes: linear probes on standardised features, which take few epochs and
one learning rate, three seeds. "ridge" is another: ridge regression in closed form on every layer
and on all of them side by side, which has neither rates nor seeds. The demos end with it, beside
random initial values and a log-mel baseline. "polyphony" is a look at the tasks on polyphony, with
a hidden layer: which interval or chord sounds is a relation of notes that may be anywhere, so that
no linear probe of a spectrum can tell it.
"""

import ml_collections

QUICK = {"kind": "linear", "standardise": True, "learning_rates": (5e-3,), "epochs": 15}
POLYPHONY = QUICK | {"tasks": "poly", "kind": "mlp", "learning_rates": (2e-3,), "epochs": 20}
RIDGE = {"kind": "ridge"}
VARIANTS = {"full": {}, "quick": QUICK, "ridge": RIDGE, "polyphony": POLYPHONY}


def settings() -> ml_collections.ConfigDict:
    """Return what is probed and how; a training run has these leaves in its section `probe`."""
    config = ml_collections.ConfigDict()
    config.tasks = (
        "synth"  # names and suites (mir, synth, poly, rhythm) of musicssl/probing/tasks.py
    )
    config.data_dir = ""  # where they are built; by default that of the training run, or data
    config.limit = 0  # records of each split that are used, 0 for all
    config.kind = "mlp"  # of probe: with a hidden layer; "linear"; or "ridge", which is solved
    config.standardise = False  # each channel at zero mean, unit variance over training windows
    config.layers = "all"  # or a list such as 0,6,12,sum (ridge: 12,concat); baselines have but one
    config.penalties = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)  # of ridge regression
    config.learning_rates = (5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
    config.seeds = (1, 2, 3)
    config.epochs = 0  # at most; 0 for the task's
    config.batch_size = 64  # in an update: files with all their windows, or windows, by the task
    config.windows = 8  # in a batch of extraction
    config.memory_gib = 12.0  # features held at once; a source with more is read as it is trained
    return config


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """Return the configuration of one variant, locked."""
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r} in configs/probe.py: use {list(VARIANTS)}")
    config = settings()
    config.encoder = ""  # a workdir, a directory, hf:ORG/NAME, python:FILE.py:NAME, logmel
    config.step = ""  # of a workdir: a number, or best (by validate.score); by default the last
    config.beside = ""  # others to compare it with, comma-separated; "random" is of its own shape
    config.also = ""  # asked of the features beside the probes: knn, few_shot, geometry
    config.deform = ""  # of the test's audio, too: noise:20,mp3:64,gain:-12,pitch:50c,speed:1.02
    config.results = ""  # where results go; by default <workdir>/probe or results/<encoder>
    config.cache = "features"  # where features are kept
    config.precision = "float32"  # of the encoder
    config.mesh = ml_collections.ConfigDict({"fsdp": 1})
    config.update(VARIANTS[variant])
    return config.lock()
