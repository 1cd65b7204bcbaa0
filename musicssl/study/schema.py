"""The schemas of a study's study.json and of its report's results.json.

Both consist of plain values for JSON. `results.collect` makes a `Study` out of a `StudyPlan` and
the files that the study's runs and probes have written.
"""

from typing import Any, NotRequired, TypedDict

from musicssl.probing.schema import LevelResult


class PlannedEncoder(TypedDict):
    """An encoder of study.json.

    name: in the study, "<family>-<variant>" of a configuration.
    kind: "pre-trained" by this study, "random" values, "features" of a baseline, or "given" as an
      encoder from elsewhere.
    family: of its configuration, "" without one.
    spec: what `extract.open_source` takes.
    workdir, config: of its training run.
    results: by data set, the directory of its probes' results.
    """

    name: str
    kind: str
    family: str
    spec: str
    workdir: str
    config: str
    results: dict[str, str]


class StudyPlan(TypedDict):
    """The whole of study.json, which launch/study.py writes.

    scale: "demo", or "base" for full size.
    command: the command that made the study.
    datasets: names of the builders in data_pipelines/ whose records the tasks use.
    encoders: the first is the reference that others are tested against.
    tasks: names of all tasks.
    commands: the command of each stage, by its name, in an order in which they can run.
    """

    scale: str
    command: str
    datasets: list[str]
    encoders: list[PlannedEncoder]
    tasks: list[str]
    commands: dict[str, list[str]]


class StageRecord(TypedDict):
    """The record that launch/study.py writes of a complete stage.

    commit, earlier_commits: the commit at which it ended, and those at which it was interrupted.
    began: the time, as text.
    seconds, cpu_seconds: wall-clock time and processor time.
    """

    stage: str
    command: list[str]
    commit: str
    earlier_commits: NotRequired[list[str]]
    began: str
    seconds: float
    cpu_seconds: float


class Stage(TypedDict):
    """A stage: its command, its record if there is one, and the commit that its result names."""

    command: list[str]
    made: StageRecord | None
    commit: str


class TrainingRun(TypedDict):
    """A training run.

    config: the configuration's file and variant.
    leaves: the configuration's leaves, flat; empty before the run has begun.
    curves: [step, value] of each scalar, thinned.
    commit: of the last checkpoint, "" without one.
    step: of the last checkpoint.
    complete: whether that is the last step.
    """

    family: str
    config: str
    leaves: dict[str, Any]
    curves: dict[str, list[list[float]]]
    commit: str
    step: int
    complete: bool


class Variation(TypedDict):
    """What a configuration varies.

    base: the run that it differs from, "" for the first of a family.
    leaves: of the configuration, [the base's value, its own value].
    """

    base: str
    leaves: dict[str, list[Any]]


class ReportedEncoder(TypedDict):
    """An encoder of the report: its plan, its readable name and its state.

    run, varies: for encoders that the study trains, else None.
    stages: the names of the stages that its scores come from.
    """

    name: str
    kind: str
    family: str
    spec: str
    title: str
    run: TrainingRun | None
    varies: Variation | None
    stages: list[str]


class PublishedScore(TypedDict):
    """A published model's score, as a fraction, and where it was published."""

    model: str
    source: str
    value: float


class StudyTask(TypedDict):
    """A task of the report.

    score: the main score's readable name.
    chance: the main score of the best answer that ignores the audio.
    items: how many things are scored in "train", "validation" and "test".
    """

    name: str
    title: str
    dataset: str
    score: str
    chance: float
    items: dict[str, int]
    published: list[PublishedScore]


class PairedTest(TypedDict):
    """The paired test of an encoder against another on the same test clips.

    mean, interval, p: the difference of the means over the probe's seeds, its 95 % interval over
      test clips and seeds, and the two-sided p.
    likely: whether p is below `results.LIKELY`.
    """

    mean: float
    interval: list[float]
    p: float
    likely: bool


class EncoderScore(TypedDict):
    """An encoder's main score of a task.

    mean, sd: over the seeds of the probe.
    interval: 95 % over test clips and seeds, of the mean.
    layer: the source of features that validation chose.
    layers: the mean score of each source.
    factors: as in the task's result.
    from_reference: the test against the study's reference. Like the following two, it is None for
      the encoder itself, on other test items, and if there is no result to compare with.
    from_base: against the run that its configuration differs from.
    from_random: against random values of the same architecture. Encoders that the study does not
      train have neither of these.
    """

    mean: float
    sd: float
    interval: list[float]
    layer: str
    layers: dict[str, float]
    factors: dict[str, list[LevelResult]]
    from_reference: PairedTest | None
    from_base: NotRequired[PairedTest | None]
    from_random: NotRequired[PairedTest | None]


class StudyAbout(TypedDict):
    """How the study and the report were made."""

    scale: str
    command: str
    commit: str
    written: str
    machine: str


class Study(TypedDict):
    """The whole of the report's results.json.

    reference: the name of the encoder that others are tested against.
    tasks: those with a result of any encoder.
    missing_tasks: the names of the others.
    scores: by encoder and task.
    stages: by name.
    """

    about: StudyAbout
    reference: str
    encoders: list[ReportedEncoder]
    tasks: list[StudyTask]
    missing_tasks: list[str]
    scores: dict[str, dict[str, EncoderScore]]
    stages: dict[str, Stage]
