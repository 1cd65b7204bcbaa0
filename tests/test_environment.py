"""What the environment may not change, and what is said of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest

from musicssl import environment
from musicssl.objectives.masking import span_mask
from musicssl.training import step
from tests.support import tiny

OTHERWISE = {  # in the order in which they are told
    "JAX_ENABLE_X64": "True",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "False",
    "JAX_RANDOM_SEED_OFFSET": "5",
    "JAX_DISABLE_JIT": "True",
    "JAX_NO_TRACING": "True",
    "JAX_NO_EXECUTION": "True",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_TRANSFER_GUARD": "disallow",
    "FLAX_FIX_RNG_SEPARATOR": "True",
}


class Said(NamedTuple):
    """How a process ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


def drawn() -> list:
    """A step's masks and a little of its dropout."""
    config = tiny.config()

    def draw() -> tuple[jax.Array, jax.Array]:
        keys = step.streams(config.seed, 7)
        mask = span_mask(keys["mask"], 4, 37, **config.mask)
        return mask.mask, jax.random.bits(keys["dropout"], (3, 1000))

    return [np.asarray(x).tolist() for x in jax.jit(draw)()]


# Tells what it has undone of its environment, and then what is drawn.
ELSEWHERE = """
import json
from musicssl import environment
from tests.test_environment import drawn
print(json.dumps([environment.settle(), *drawn()]))
"""


def test_the_environment_changes_nothing_that_is_drawn_at_random():
    """The variables are read as JAX is imported, so it takes a process that is not forked."""
    done = run([sys.executable, "-c", ELSEWHERE], os.environ | OTHERWISE)
    assert done.returncode == 0, done.stderr
    undone, *there = json.loads(done.stdout)
    assert there == drawn()
    assert undone == [f"{name}={value}" for name, value in OTHERWISE.items()]


REFUSED = {  # by JAX and Flax, as they are imported
    "JAX_ENABLE_X64": "maybe",
    "JAX_RANDOM_SEED_OFFSET": "many",
    "JAX_DEFAULT_PRNG_IMPL": "dice",
    "FLAX_FIX_RNG_SEPARATOR": "maybe",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_jax_refuses_ends_a_command_in_one_line(name):
    """Before the command's own module is read; in a program it is an error like others."""
    given = os.environ | {name: REFUSED[name], "JAX_LOG_COMPILES": "0"}
    done = run([sys.executable, "-m", "musicssl.plan", "--help"], given)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"musicssl: {name} in the environment is refused (")
    assert REFUSED[name] in done.stderr and done.stderr.endswith("): leave it out\n")
    if name == "JAX_ENABLE_X64":
        program = "import sys; sys.argv[0] = {!r}\nimport musicssl"
        assert run([sys.executable, "-c", program.format("/usr/bin/musicssl")], given) == done
        done = run([sys.executable, "-c", program.format("mine.py")], given)
        assert f"ValueError: {name} in the environment is refused (" in done.stderr


def test_a_command_draws_into_files_whatever_shows_pictures_elsewhere():
    """Matplotlib refuses an unknown name by a traceback; a program's own choice stays."""
    program = "import sys; sys.argv[0] = {!r}\nimport musicssl, os; print(os.environ['MPLBACKEND'])"
    for name, backend in (("-m", "agg"), ("mine.py", "none")):
        given = os.environ | {"MPLBACKEND": "none"}
        done = run([sys.executable, "-c", program.format(name)], given)
        assert (done.returncode, done.stdout) == (0, f"{backend}\n")


def run(command: list[str], environment: dict[str, str]) -> Said:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    return Said(done.returncode, done.stdout, done.stderr)


def test_keys_are_those_of_jax_s_default_generator_whatever_is_set():
    wanted = jax.random.key_data(jax.random.key(3))
    with jax.default_prng_impl("rbg"):
        assert (jax.random.key_data(environment.key(3)) == wanted).all()
        keys = step.streams(3, 0).values()
    assert {str(jax.random.key_impl(key)) for key in keys} == {"threefry2x32"}


def test_nothing_is_told_where_nothing_was_set():
    assert environment.settle() == []


@pytest.mark.parametrize("platform", ["cuda", "abacus"])
def test_a_platform_that_is_not_there_is_named_with_those_that_are(platform):
    said = tiny.in_another_process(without_devices, platform)
    assert said.startswith(f"there is no device of the platform {platform} (")
    assert said.endswith("): set JAX_PLATFORMS to cpu, or leave it out") and "\n" not in said


def without_devices(platform: str) -> str:
    jax.config.update("jax_platforms", platform)
    try:
        environment.require_devices()
    except ValueError as error:
        return str(error)
    return ""


def test_other_names_of_platforms_are_looked_at_first():
    """JAX would end in a traceback at the first use of a device."""
    said = tiny.in_another_process(with_variable, "JAX_PLATFORM_NAME", "abacus")
    assert said.startswith("there is no device of the platform abacus (")
    assert said.endswith("): set JAX_PLATFORM_NAME to cpu, or leave it out")


@pytest.mark.parametrize("name", ["JAX_COMPILATION_CACHE_DIR", "JAX_DUMP_IR_TO"])
def test_folders_that_jax_is_given_are_looked_at_first(name, tmp_path, monkeypatch):
    """JAX would create a folder called gs: or ~, or warn in mid-run of what it cannot create."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    settings = SimpleNamespace(update=lambda name, value: settings.__dict__.update({name: value}))
    monkeypatch.setattr(environment.jax, "config", settings)

    def given(folder: str) -> str:
        if name == "JAX_DUMP_IR_TO":  # which JAX's configuration does not show
            vars(settings).pop(name.lower(), None)
            monkeypatch.setenv(name, folder)
        else:
            settings.update(name.lower(), folder)
        environment.require_folders()
        return vars(settings).get(name.lower(), "")

    for folder in (f"{tmp_path}/file", f"{tmp_path}/file/x"):
        with pytest.raises(ValueError, match=f"^{name}={folder} cannot be made a folder [(]"):
            given(folder)
    for folder in ("gs:/b/x", "s3://b/x", "gs://"):
        with pytest.raises(ValueError, match=f"^{name}: {folder}.*, or leave it out$"):
            given(folder)
    assert given("~/x") == f"{tmp_path}/x" and given("gs://abc/x/") == "gs://abc/x"
    assert given("") == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "x"]


def with_variable(name: str, value: str) -> str:
    os.environ[name] = value
    if name == "JAX_PLATFORM_NAME":  # as JAX reads it when it is imported
        jax.config.update("jax_platform_name", value)
    try:
        environment.require_devices()
    except ValueError as error:
        return str(error)
    return ""


def test_what_results_depend_on_is_described(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--some")
    with jax.default_matmul_precision("highest"):
        described = environment.described()
    assert described["jax"] == jax.__version__ and described["device"] == "cpu"
    assert described["XLA_FLAGS"] == "--some" and described["matmul precision"] == "highest"


def test_tensorflow_leaves_no_folder_where_a_user_has_no_home(monkeypatch):
    monkeypatch.delenv("KERAS_HOME", raising=False)
    environment.tell_tensorflow()
    assert "KERAS_HOME" not in os.environ
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    environment.tell_tensorflow()
    assert os.environ["KERAS_HOME"] == os.devnull


@pytest.mark.parametrize(
    ("triton", "said"),
    [
        ("import sys; print('tensorflow' in sys.modules)", ["False", "tensorflow"]),
        ("raise RuntimeError('no driver')", ["tensorflow"]),
    ],
)
def test_triton_is_loaded_before_tensorflow_if_it_can_be(triton, said, tmp_path):
    (tmp_path / "triton.py").write_text(triton)
    (tmp_path / "tensorflow.py").write_text("print('tensorflow')")
    told = subprocess.run(
        [sys.executable, "-c", "import data_pipelines, tensorflow"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])},
        capture_output=True,
        text=True,
    )
    assert told.stdout.splitlines() == said and not told.stderr
