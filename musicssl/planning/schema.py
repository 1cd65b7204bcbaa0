"""What a plan holds: plain values, which serialise to JSON as they are."""

from typing import NotRequired, TypedDict

MEMORY_KINDS = ("argument", "output", "alias", "temp", "generated_code")


class StateBytes(TypedDict):
    """Bytes of the training state on one device, by what they hold."""

    parameters: int
    teacher: int
    optimizer: int


class Memory(StateBytes):
    """Bytes on one device.

    limit: what a program may take, None where nothing tells. device: what a GPU has. fits: whether
    the step may be run. wanted: what it takes, None where a refusal does not say. The others are
    the compiler's analysis of a step that fits.
    """

    limit: int | None
    device: NotRequired[int]
    fits: bool
    argument: NotRequired[int]
    output: NotRequired[int]
    alias: NotRequired[int]
    temp: NotRequired[int]
    generated_code: NotRequired[int]
    wanted: int | None


class Seconds(TypedDict):
    """Seconds of one step.

    roofline: of the model's operations at the peak rate, None where that is not known; nothing is
    faster. The others are there for chips of a known data sheet. least, estimate: the two ends of
    what the step may take. exchange: what exchanges are of the estimate.

    TPU: the least is the roofline; the estimate is the compiler's cycles and the exchanges. GPU:
    the least is the program's own roofline, each kernel by its operations at the peak rate or by
    its bytes at the memory's, whichever takes longer; the estimate is that, what it takes to start
    the kernels (launch), and the exchanges.
    """

    roofline: float | None
    least: NotRequired[float]
    estimate: NotRequired[float]
    exchange: NotRequired[float]
    launch: NotRequired[float]


class Exchange(TypedDict):
    """One kind of exchange between devices.

    count: how many a step makes. bytes: of all their results on one device. activations: the
    shapes among them that are of activations, of which there should be none.
    """

    kind: str
    count: int
    bytes: int
    activations: list[list[int]]


class Work(TypedDict):
    """What the kernels of one part of the model do in a step on one GPU.

    kernels: how many are started. bytes: read and written. operations: of products and
    convolutions. seconds: the least that they take. memory_seconds: of these, what kernels take
    whose bytes take longer than their operations.
    """

    kernels: int
    bytes: int
    operations: int
    seconds: float
    memory_seconds: float


class Feed(TypedDict):
    """What one host has to read in a second: seconds of audio, bytes, and cores that are busy.

    bytes: all that is read for them in the configuration's order, with what crops leave unused.
    """

    audio_seconds: float
    bytes: float
    cores: float


class Reading(TypedDict):
    """What a step's batch reads of its data set, in all: bytes, and reads of them."""

    bytes: float
    reads: float


class Tried(TypedDict):
    """A batch that was put to the compiler: clips on each device, bytes wanted, and the verdict."""

    clips: int
    bytes: int | None
    fits: bool


class Predicting(TypedDict):
    """What a step costs, and what for.

    by: the configuration, or the method that it is compared with. flops: of the global batch's
    step. predictions: masked frames of it whose targets are predicted, in the mean.
    """

    by: str
    flops: float
    predictions: float


class Contents(TypedDict):
    """What is read from a compiled step.

    collectives: what it sends, none where it was refused. cycles: estimated by a TPU's compiler, by
    part. work: of a GPU's kernels, by part. uncounted_kernels: how many kernels there are whose
    operations nothing tells; absent where the step was refused. hertz: of the clock that cycles are
    counted in. kernels: the cycles entered for Pallas kernels. These two are there for TPUs of a
    known data sheet.
    """

    collectives: list[Exchange]
    cycles: dict[str, int]
    work: dict[str, Work]
    uncounted_kernels: NotRequired[int]
    hertz: NotRequired[float]
    kernels: NotRequired[int]


class Plan(Contents):
    """What is known of a configuration's step on a topology.

    config: family and variant. topology: as on the command line. devices, kind: how many there
    are, and JAX's name for them. fsdp: how many share one copy of the state. clips: on each
    device. global_batch: on all of them. crop_seconds: the length of a clip. steps: of the whole
    run. parameters: of the student, how many. checkpoint_bytes: of the whole state. flops: the
    model's operations a step on one device, by part. peak_flops: the device's peak rate, None where
    it is not known. predicting: this configuration, and data2vec 1.0 beside data2vec 2.0. feed: for
    each pace of `seconds`. reading: by data.order. attempts: every batch that was compiled.
    compile_seconds: what it took to make this plan.
    """

    config: str
    topology: str
    devices: int
    kind: str
    fsdp: int
    clips: int
    global_batch: int
    crop_seconds: float
    steps: int
    parameters: int
    checkpoint_bytes: int
    memory: Memory
    flops: dict[str, float]
    peak_flops: float | None
    predicting: list[Predicting]
    seconds: Seconds
    feed: dict[str, Feed]
    reading: dict[str, Reading]
    attempts: list[Tried]
    compile_seconds: float


class DeviceCost(TypedDict):
    """Seconds that an evaluation's task takes on a machine.

    extraction: None where another task's pass over the same audio gives the features, or where
    operations are not known. grid: for the fewest and the most epochs.
    """

    extraction: float | None
    grid: list[float]


class TaskCost(TypedDict):
    """What one task of an evaluation takes.

    hours: of audio that is heard. windows: that it is cut into. shares: the task whose pass over
    the same audio gives this one its features, "" for none. flops: of extraction, None where it is
    shared or not known. cache_bytes: of features on disk, 0 where another task has the same ones.
    memory_bytes: that training probes holds at once, at most. epochs: the fewest that a probe may
    stop after, and the most. grid_flops: of all probes, for each of these. here: on this machine,
    by its measured rates. devices: elsewhere, at least.
    """

    task: str
    title: str
    hours: float
    windows: int
    shares: str
    flops: float | None
    cache_bytes: int
    memory_bytes: int
    probes: int
    epochs: list[int]
    grid_flops: list[float]
    here: DeviceCost
    devices: dict[str, DeviceCost]


class EvaluationPlan(TypedDict):
    """What an evaluation takes.

    machine: the one that `here` is of. extraction_rate: seconds of audio heard in a second there.
    """

    encoder: str
    layers: int
    width: int
    parameters: int
    precision: str
    machine: str
    extraction_rate: float
    tasks: list[TaskCost]
