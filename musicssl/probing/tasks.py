"""The tasks of the evaluator in one table: the paper's 13, 6 on embedded music, 7 on polyphony.

Two more ask GTZAN's features for downbeats and tempo.

The 13 are those of arXiv:2307.05161 as far as they are known: MARBLE's 14 (arXiv:2306.10548)
without source separation, emotion counted once. Patiences and metrics are those of MARBLE's code
(benchmark/tasks/*/*_base_config.yaml), windows those of its configurations of HuBERT and music2vec
(configs/{hubert,music2vec}/*.yaml). protocol.md says where a task differs from them.
"""

import dataclasses

from musicssl.features import windows

SPLITS = ("train", "validation", "test")
WHOLE, FRAMES, _HALF_SECOND = windows.WHOLE, windows.FRAMES, 25
_CHUNK = 132_000 / 44_100  # seconds: MARBLE counts 44 samples in a millisecond
_MTG_SIZES = {
    "instrument": (14395, 5466, 5115),
    "moodtheme": (9949, 3802, 4231),
    "genre": (32572, 11043, 11479),
    "top50": (32136, 10888, 11356),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    dataset: a builder of data_pipelines/.
    label: the field of its records that is asked for, or a name in `labels.PART_LABELS`.
    kind: a name in `task_kinds.KINDS`.
    window: seconds of the windows that clips are cut into.
    plateau, patience: epochs without a gain before the learning rate is halved, and before training
      stops.
    pool: ticks of 20 ms that are a row: WHOLE for the whole window, _HALF_SECOND, FRAMES for the
      encoder's frames, whatever their rate.
    by_item: whether outputs are averaged over the rows of a record before they are scored.
    trained_whole: whether a training sample is a record with all of its windows, so that a batch
      has as many records as its size says; else a sample is a window.
    rests: whether the end of a record, if it is shorter than a window, is a window too.
    prefix: of the data set's split names.
    sizes: usable records published for train, validation and test; None where none are published.
    outputs: of the probe; 0 for as many as there are classes in the data.
    standardised_alone: whether encoders that take audio of mean 0 and variance 1 have each window
      standardised by itself, not its record.
    factors: of the records. A task of kind "class" that is scored by item is also scored at each of
      their levels.
    """

    name: str
    title: str
    dataset: str
    label: str
    kind: str
    window: float
    plateau: int = 5
    patience: int = 20
    epochs: int = 100
    pool: int = WHOLE
    by_item: bool = True
    trained_whole: bool = False
    rests: bool = True
    prefix: str = ""
    sizes: tuple[int, int, int] | None = None
    outputs: int = 0
    standardised_alone: bool = False
    factors: tuple[str, ...] = ()

    def split(self, name: str) -> str:
        """Return the data set's name of a split."""
        return self.prefix + name


def _mtg(subset: str, title: str) -> Task:
    return Task(
        f"mtg_{subset}", title, "mtg_jamendo", subset, "tags", 30, 3, 10, trained_whole=True,
        sizes=_MTG_SIZES[subset],
    )  # fmt: skip


_MIR = (
    Task(
        "magnatagatune", "MagnaTagATune, 50 tags", "magnatagatune", "tags", "tags", 30, 3, 10,
        sizes=(18706, 1825, 5329),
    ),
    Task(
        "giantsteps_key", "GiantSteps, key", "giantsteps_key", "key", "key", 30, 5, 20,
        rests=False, sizes=(923, 236, 604), outputs=24, standardised_alone=True,
    ),
    Task(
        "gtzan_genre", "GTZAN, genre", "gtzan", "genre", "class", 30, 6, 20, sizes=(443, 197, 290),
    ),
    # A row is a frame; training takes a 10 s crop of each clip's frames, neighbours of a beat count
    # as beats.
    Task(
        "gtzan_beat", "GTZAN-Rhythm, beats", "gtzan", "beat_times", "beat", 30, 6, 20, pool=FRAMES,
        sizes=(443, 197, 290), outputs=1,
    ),
    # A window of 30 and one of 15 s.
    Task(
        "emomusic", "EmoMusic, arousal and valence", "emomusic", "emotion", "emotion", 30, 5, 20,
        trained_whole=True, sizes=(504, 115, 125), outputs=2,
    ),
    Task(
        "nsynth_instrument", "NSynth, instrument family", "nsynth", "family", "class", 4, 3, 10, 50,
        sizes=(289205, 12678, 4096),
    ),
    Task(
        "nsynth_pitch", "NSynth, pitch", "nsynth", "pitch", "class", 4, 3, 10, 50,
        sizes=(289205, 12678, 4096), outputs=128,
    ),
    # Each chunk is an item.
    Task(
        "vocalset_technique", "VocalSet, technique", "vocalset", "technique", "class", _CHUNK, 5,
        10, by_item=False, rests=False, prefix="technique_", outputs=10, standardised_alone=True,
    ),
    Task(
        "vocalset_singer", "VocalSet, singer", "vocalset", "singer", "class", _CHUNK, 5, 20,
        by_item=False, prefix="singer_", outputs=20, standardised_alone=True,
    ),
    _mtg("instrument", "MTG-Jamendo, instrument"),
    _mtg("moodtheme", "MTG-Jamendo, mood and theme"),
    _mtg("genre", "MTG-Jamendo, genre"),
    _mtg("top50", "MTG-Jamendo, top 50 tags"),
)  # fmt: skip
_SYNTH = (
    Task("synth_key", "synth_music, key", "synth_music", "key", "key", 5, 5, 15, outputs=24),
    Task(
        "synth_instrument", "synth_music, instruments in 5 s", "synth_music", "instruments", "tags",
        5, 3, 10, by_item=False, outputs=16,
    ),
    Task(
        "synth_pitch", "synth_music, pitch classes in 0.5 s", "synth_music", "pitch_classes",
        "tags", 5, 3, 10, pool=_HALF_SECOND, by_item=False, outputs=12,
    ),
    Task(
        "synth_chord", "synth_music, chord root and third in 0.5 s", "synth_music", "chord",
        "class", 5, 3, 10, pool=_HALF_SECOND, by_item=False, outputs=24,
    ),
    Task(
        "synth_polyphony", "synth_music, pitches at once in 0.5 s", "synth_music", "polyphony",
        "class", 5, 3, 10, pool=_HALF_SECOND, by_item=False, outputs=8,
    ),
    Task(
        "synth_beat", "synth_music, beats", "synth_music", "beats", "beat", 5, 3, 10, pool=FRAMES,
        outputs=1,
    ),
)  # fmt: skip


def _poly(
    name: str, title: str, stimuli: str, label: str, outputs: int, factors: tuple[str, ...]
) -> Task:
    """Return a question about the clips of one of synth_polyphony's sets of stimuli."""
    return Task(
        f"poly_{name}", title, "synth_polyphony", label, "class", 2, 5, 15, prefix=f"{stimuli}_",
        outputs=outputs, factors=factors,
    )  # fmt: skip


_BAND, _ALIKE = ("voices", "detuning"), ("octave", "timbre", "detuning")
_POLY = (
    _poly("pitch", "pitch class of the sung note", "target", "target", 12, _BAND),
    _poly("count", "notes at once", "voices", "count", 6, _BAND),
    _poly("lowest", "pitch class of the lowest note", "voices", "lowest", 12, _BAND),
    _poly("highest", "pitch class of the highest note", "voices", "highest", 12, _BAND),
    _poly("instrument", "who plays the lowest note", "voices", "instrument", 8, _BAND),
    _poly("interval", "interval of two notes", "interval", "interval", 12, _ALIKE),
    _poly("chord", "quality of a chord", "chord", "quality", 8, _ALIKE),
)
# The annotations are GTZAN-Rhythm's; patiences and windows are those of its beats.
_RHYTHM = (
    Task(
        "gtzan_downbeat", "GTZAN-Rhythm, downbeats", "gtzan", "downbeat_times", "downbeat", 30, 6,
        20, pool=FRAMES, outputs=1,
    ),
    Task(
        "gtzan_tempo", "GTZAN-Rhythm, tempo", "gtzan", "tempo", "tempo", 30, 6, 20, outputs=256,
    ),
)  # fmt: skip
TASKS = {task.name: task for task in (*_MIR, *_SYNTH, *_POLY, *_RHYTHM)}
SUITES = {
    "mir": tuple(t.name for t in _MIR),
    "synth": tuple(t.name for t in _SYNTH),
    "poly": tuple(t.name for t in _POLY),
    "rhythm": tuple(t.name for t in _RHYTHM),
}


def choose(names: str) -> list[Task]:
    """Return the tasks of a comma-separated list of names and suites (the keys of SUITES).

    Raises:
      ValueError: a name is neither a task nor a suite, or there is no name.
    """
    chosen: list[str] = []
    for part in names.split(","):
        name = part.strip()
        if not name:
            continue
        if name not in TASKS and name not in SUITES:
            raise ValueError(f"there is no {name!r}: use some of {[*SUITES, *TASKS]}")
        chosen += SUITES.get(name, (name,))

    if not chosen:
        raise ValueError(f"the list is empty: name some of {[*SUITES, *TASKS]}")
    return [TASKS[name] for name in dict.fromkeys(chosen)]
