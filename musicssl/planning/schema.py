"""The contents of a plan: plain values, which serialise to JSON directly."""

from typing import NotRequired, TypedDict

MEMORY_KINDS = ("argument", "output", "alias", "temp", "generated_code")


class StateBytes(TypedDict):
    """Bytes of the training state on one device, by kind."""

    parameters: int
    teacher: int
    optimizer: int


class Memory(StateBytes):
    """Bytes on one device.

    limit: what a program may take, None if not known. device: all that a GPU has. fits: whether the
    step can be run. wanted: what it takes, None if a refusal does not say. The others are the
    compiler's analysis of a step that fits.
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

    roofline: the model's operations at the peak rate, None if that is not known; nothing is faster.
    The others exist for chips with a known data sheet. least, estimate: the two ends of the range
    of the step's time. exchange: the exchanges' part of the estimate.

    TPU: the least is the roofline; the estimate is the compiler's cycles plus the exchanges. GPU:
    the least is the program's own roofline, in which each kernel takes its operations at the peak
    rate or its bytes at the memory's, whichever is longer; the estimate adds the time to start the
    kernels (launch) and the exchanges.
    """

    roofline: float | None
    least: NotRequired[float]
    estimate: NotRequired[float]
    exchange: NotRequired[float]
    launch: NotRequired[float]


class Exchange(TypedDict):
    """One kind of exchange between devices.

    count: how many there are in a step. bytes: of all their results on one device. activations:
    those of their shapes that are activations; there should be none.
    """

    kind: str
    count: int
    bytes: int
    activations: list[list[int]]


class Work(TypedDict):
    """The work of the kernels of one part of the model in a step on one GPU.

    kernels: how many are started. bytes: read and written. operations: of products and
    convolutions. seconds: the least time that they take. memory_seconds: the part of this time in
    kernels whose bytes take longer than their operations.
    """

    kernels: int
    bytes: int
    operations: int
    seconds: float
    memory_seconds: float


class Feed(TypedDict):
    """How much one host has to read per second: seconds of audio, bytes, and busy cores.

    bytes: all that is read in the configuration's order, including what crops leave unused.
    """

    audio_seconds: float
    bytes: float
    cores: float


class Reading(TypedDict):
    """The total bytes and reads of a step's batch."""

    bytes: float
    reads: float


class Tried(TypedDict):
    """A batch given to the compiler: clips per device, bytes wanted, and the verdict."""

    clips: int
    bytes: int | None
    fits: bool


class Predicting(TypedDict):
    """What a step costs, and how many predictions it makes.

    by: the configuration, or the method that it is compared with. flops: of the global batch's
    step. predictions: the mean number of masked frames whose targets are predicted.
    """

    by: str
    flops: float
    predictions: float


class Contents(TypedDict):
    """Facts read from a compiled step.

    collectives: its exchanges, none if it was refused. cycles: estimated by a TPU's compiler, by
    part. work: of a GPU's kernels, by part. uncounted_kernels: how many kernels have an unknown
    number of operations; absent if the step was refused. hertz: of the clock in which cycles are
    counted. kernels: the cycles entered for Pallas kernels. The last two exist for TPUs with a
    known data sheet.
    """

    collectives: list[Exchange]
    cycles: dict[str, int]
    work: dict[str, Work]
    uncounted_kernels: NotRequired[int]
    hertz: NotRequired[float]
    kernels: NotRequired[int]


class Plan(Contents):
    """The plan of a configuration's step on a topology.

    config: family and variant. topology: as on the command line. devices, kind: how many there
    are, and JAX's name for them. fsdp: how many share one copy of the state. clips: on each
    device. global_batch: on all of them. crop_seconds: the length of a clip. steps: of the whole
    run. parameters: how many the student has. checkpoint_bytes: of the whole state. flops: the
    model's operations per step on one device, by part. peak_flops: the device's peak rate, None if
    it is not known. predicting: this configuration and, for data2vec 2.0, also data2vec 1.0. feed:
    for each pace of `seconds`. reading: by data.order. attempts: every batch that was compiled.
    compile_seconds: the time it took to make this plan.
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
    """How many seconds a task of an evaluation takes on a machine.

    extraction: None if another task's pass over the same audio gives the features, or if the
    operations are not known. grid: for the fewest and the most epochs.
    """

    extraction: float | None
    grid: list[float]


class TaskCost(TypedDict):
    """The plan of one task of an evaluation.

    hours: of audio. windows: how many it is cut into. shares: the task whose pass over the same
    audio gives this one its features, "" for none. flops: of extraction, None if it is shared or
    not known. cache_bytes: of features on disk, 0 if another task has the same ones. memory_bytes:
    the most that training probes holds at once. epochs: the fewest after which a probe may stop,
    and the most. grid_flops: of all probes, for each of these. here: on this machine, by its
    measured rates. devices: the least times elsewhere.
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
    """The plan of an evaluation.

    machine: the one that `here` refers to. extraction_rate: seconds of audio extracted there per
    second.
    """

    encoder: str
    layers: int
    width: int
    parameters: int
    precision: str
    machine: str
    extraction_rate: float
    tasks: list[TaskCost]
