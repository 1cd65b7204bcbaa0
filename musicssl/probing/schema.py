"""The schema of results.json: what is known of an encoder's tasks, of plain values for JSON.

Fields that are `NotRequired` are missing in the files of earlier versions.
"""

from typing import Any, NotRequired, TypedDict

# The version of what probes hear and how they are trained; results of two versions do not compare.
# In version 1, windows at the end of a record were filled with zeros, and batches were of windows,
# not of files.
PROTOCOL = 2


class SeedScore(TypedDict):
    """A test score over the seeds of a probe: their mean and standard deviation (0 of one seed)."""

    mean: float
    sd: float


class LayerResult(TypedDict):
    """The scores of a source of features, at its best learning rate or penalty.

    source: a layer, "0" to "12"; "sum" for the weighted sum of all but layer 0; or "concat" for all
      of them side by side.
    learning_rate: the one with the best mean validation score, of a probe that is trained.
    penalty: the one with the best validation score, of ridge regression.
    validation: that score, a mean over the seeds.
    test: every score of the task, by name.
    """

    source: str
    learning_rate: NotRequired[float]
    penalty: NotRequired[float]
    validation: float
    test: dict[str, SeedScore]


class ChosenResult(LayerResult):
    """The source with the best validation score, which is the one that is reported.

    test_seeds: the main test score of each seed.
    interval: 95 % bootstrap interval of the mean of these, over test clips and seeds.
    draws: of each seed, the main score of each bootstrap sample of the test clips: [s][draws].
      Those of two encoders are of the same clips, so their differences make a paired test.
      Earlier versions wrote those of the seed that did best on validation alone, [draws], and its
      interval; they are read as those of one seed.
    """

    test_seeds: list[float]
    interval: list[float]
    draws: list[list[float]]


class LevelScore(TypedDict):
    """Accuracy at a level of a factor, the mean over seeds and items.

    interval: 95 % of the bootstrap, over both.
    """

    mean: float
    interval: list[float]


class LevelResult(TypedDict):
    """Scores at one level of a factor.

    items: test items at this level.
    chance: accuracy of answers drawn at random, each as often as training items have it.
    sources: scores by source of features.
    """

    level: str
    items: int
    chance: float
    sources: dict[str, LevelScore]


class BesideResult(TypedDict):
    """The scores of answers without training, at the layer that does best on validation.

    number: of neighbours that are asked, or of items of each class.
    validation: the main score there, the mean over draws.
    test: every score, over draws of the items of each class (sd 0 of neighbours).
    interval: 95 % of the mean main score, over test clips and draws.
    """

    source: str
    number: int
    validation: float
    test: dict[str, SeedScore]
    interval: list[float]


class LayerGeometry(TypedDict):
    """The geometry of a layer's features of training items, as `features.geometry` defines it."""

    source: str
    isotropy: float
    effective_rank: float
    mean_cosine: float


class DeformedResult(TypedDict):
    """The main score on deformed test items, of the reported probes, trained without deformation.

    deformation: such as "noise:20".
    mean: over seeds.
    interval: 95 % of it, over test clips and seeds.
    drop: how far it is below the score on the test items as they are.
    drop_interval, p: of a paired test of the same probes on the same items; None where deformed
      items are not the same ones, as where speed changes how many rows there are.
    """

    deformation: str
    mean: float
    interval: list[float]
    drop: float
    drop_interval: list[float] | None
    p: float | None


class TaskResult(TypedDict):
    """The result of one task.

    task, title: the task's name, for commands and for people.
    dataset: the builder of data_pipelines/ that made its records.
    score: the name of the main score, which is reported and compared.
    chosen: the result that is reported.
    test_items: digest of the test items' labels; results with other items do not compare.
    test_clips: how many clips these are of, as many as a bootstrap sample draws. Earlier versions,
      which lack it, drew items, even where several are of one clip.
    layers: the result of every source of features.
    factors: by factor, its levels in ascending order; the first factor, "all", has one level.
    chance: every score of the best answer that ignores the audio.
    items: how many things are scored, of "train", "validation" and "test".
    published_items: the published numbers of the same, None where none are published.
    settings: the leaves of the configuration without which results do not compare.
    protocol: PROTOCOL of the version that wrote it; 1 where it is missing.
    classes: names of the outputs, none where the data set has no names.
    confusion: test items by label (row) and answer (column), of tasks with one class an item.
    unscored_classes: tags that no test item has or every one has, which averages leave out.
    untrained_classes: classes of test items that no training item has.
    seconds: how long the probes took.
    knn, few_shot, geometry, deformed: where they were asked for (config.also, config.deform) and
      the task allows them.
    """

    task: str
    title: str
    dataset: str
    score: str
    chosen: ChosenResult
    test_items: NotRequired[str]
    test_clips: NotRequired[int]
    layers: list[LayerResult]
    factors: NotRequired[dict[str, list[LevelResult]]]
    chance: dict[str, float]
    items: dict[str, int]
    published_items: tuple[int, int, int] | None
    settings: NotRequired[dict[str, Any]]
    protocol: NotRequired[int]
    classes: list[str]
    confusion: list[list[int]] | None
    unscored_classes: list[str]
    untrained_classes: list[str]
    seconds: float
    knn: NotRequired[BesideResult]
    few_shot: NotRequired[BesideResult]
    geometry: NotRequired[list[LayerGeometry]]
    deformed: NotRequired[list[DeformedResult]]


class TrainedBy(TypedDict):
    """The training run whose encoder was evaluated.

    config: the leaves of its configuration, by dotted names.
    step: of the checkpoint.
    """

    config: dict[str, Any]
    step: int


class About(TypedDict):
    """What was evaluated, and with what.

    encoder: as it was named on the command line.
    features: the encoder's name in reports.
    digest: of all that its features depend on; one results.json holds results of one digest.
    origin: of an encoder from the Hub, the commit (revision); of a plug-in, its file, the file's
      sha256, that of its weights, and its version; of features, their directory and sha256.
    config: of the evaluation.
    run: of an encoder that was read from a workdir, else None.
    command, commit: that made the last of the results.
    jax, device, machine: the version and hardware that it ran with.
    """

    encoder: str
    features: str
    digest: str
    origin: NotRequired[dict[str, str]]
    config: dict[str, Any]
    run: NotRequired[TrainedBy | None]
    command: str
    commit: NotRequired[str]
    jax: str
    device: str
    machine: str


class Results(About):
    """The whole of results.json: results by the names of their tasks."""

    tasks: dict[str, TaskResult]
