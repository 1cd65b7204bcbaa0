"""What all tests share: how JAX is started, and which tests begin.

Tests of TPU and GPU plans run where those compilers are installed: pip install 'jax[tpu]',
pip install 'jax[cuda13]'.
"""

import gc
import importlib.util
import os
import signal
import tempfile
from collections.abc import Generator, Iterator

import pytest

import data_pipelines  # noqa: F401  # before anything that imports TensorFlow
from tests.support import bucket as buckets
from tests.support import compiling

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
HAS_CUDA = importlib.util.find_spec("jax_cuda13_plugin") is not None
OF_TPUS = ["planning/test_compilation_tpu.py", "planning/test_counts_tpu.py"]
OF_GPUS = ["planning/test_compilation_gpu.py", "planning/test_counts_gpu.py"]
collect_ignore = ([] if HAS_LIBTPU else OF_TPUS) + ([] if HAS_CUDA else OF_GPUS)
if HAS_LIBTPU or HAS_CUDA:  # else jax would look for a device in every process of the suite
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = compiling.xla_flags()  # here and in the processes that tests start
# TensorFlow, which reads this as it is imported, would try again by itself for 80 s.
os.environ["GCS_RETRY_CONFIG_MAX_RETRIES"] = "1"
os.environ["GCS_RETRY_CONFIG_INIT_DELAY_TIME_US"] = "1000"

# Numba keeps librosa's compiled functions in files. Two processes that compile at once, as in a new
# environment, leave a mixture of their files, and whoever loads it crashes. So each has a folder.
_COMPILED_BY_NUMBA = tempfile.TemporaryDirectory(prefix="numba-")
os.environ["NUMBA_CACHE_DIR"] = _COMPILED_BY_NUMBA.name

# Who starts the tests may ignore these, as nohup does, and then so do the processes of tests.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

# Begun first, so that workers end together.
LONGEST = (
    *(
        "test_main",
        "test_bucket_runs",
        "test_pages",
        "test_own_folder",
        "test_topologies",
        "test_musichubert",
        "test_configs",
        "test_loop",
        "test_loop_stops",
    ),
    *("test_session", "test_encoder", "test_polyphony", "test_counts", "test_baselines"),
    *("test_local", "test_loop_stops", "test_benchmark", "test_grid", "test_step", "test_masking"),
)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many as there are cores for it: with one more the whole takes as long, in more memory."""
    del config
    mine = getattr(os, "sched_getaffinity", None)  # macOS does not say which cores it gives
    return len(mine(0)) if mine else os.cpu_count()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports make objects by the million, and none is garbage: they are never looked through.

    Else every full collection later would, half a second each time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled programs between the runs of a file."""
    import jax

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    jax.config.update(names[0], str(tmp_path_factory.mktemp("xla")))
    jax.config.update(names[1], 0.0)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[buckets.Bucket]:
    with buckets.Bucket() as server:
        yield server


@pytest.fixture(scope="module")
def bucket(bucket_server: buckets.Bucket) -> Iterator[buckets.Bucket]:
    """The bucket on loopback that gs://bucket is for a module's tests; they share its names.

    TensorFlow remembers for some seconds what it has seen there: use a name for one thing only.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bucket_server.environment.items():
            patch.setenv(name, value)
        yield bucket_server


def pytest_report_header() -> list[str]:
    compilers = {"TPU": (HAS_LIBTPU, "jax[tpu]"), "GPU": (HAS_CUDA, "jax[cuda13]")}
    return [
        f"tests of {kind} plans: "
        + ("run" if there else f"left out: the compiler is missing (pip install '{package}')")
        for kind, (there, package) in compilers.items()
    ]
