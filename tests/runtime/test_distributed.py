"""Joining other processes, and leaving them, without any other process."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from musicssl.runtime import distributed
from tests.support import runs

OF_JOBS = ("SLURM", "TPU", "MEGASCALE", "JAX_COORDINATOR", "JAX_NUM", "JAX_PROCESS")
SLURM = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}


@pytest.fixture(autouse=True)
def parsed() -> Iterator[None]:
    """Flags may be read, as after a command's start."""
    flags.FLAGS.mark_as_parsed()
    yield
    flags.FLAGS.unparse_flags()


@pytest.fixture
def described(monkeypatch):
    """What a job is taken to be, by its environment and flags."""
    for name in [x for x in os.environ if x.startswith(OF_JOBS)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # as JAX does where there is no chip

    def call(environment: dict[str, str], **flags: str) -> dict | None:
        with monkeypatch.context() as patch, flagsaver.as_parsed(**flags):
            for name, value in environment.items():
                patch.setenv(name, value)
            return distributed.described()

    return call


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "16"}, None),  # in the batch script itself, outside srun
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        (SLURM, {}),  # a task a GPU: JAX gives each its own
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2"}, {"local_device_ids": list(range(8))}),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, {}),  # no GPU
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1", "TPU_WORKER_ID": "1"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "slice-0:8080"}, {}),
    ],
)
def test_the_environment_tells_of_a_job(described, environment, expected):
    assert described(environment) == expected
    assert described(environment, processes="1") is None


def test_flags_go_before_the_environment(described):
    flags = {"coordinator": "a:1", "processes": "3", "process": "2"}
    expected = {"coordinator_address": "a:1", "num_processes": 3, "process_id": 2}
    assert described(SLURM, **flags) == expected
    with pytest.raises(ValueError, match="--coordinator also needs --processes and --process"):
        described({}, coordinator="a:1", processes="3")
    with pytest.raises(ValueError, match="need --coordinator=HOST:PORT"):
        described({}, processes="3", process="2")


def test_a_command_that_takes_over_gets_the_flags_that_were_given():
    with flagsaver.as_parsed(coordinator="a:1", heartbeat="7"):
        assert distributed.as_flags() == ["--coordinator=a:1", "--heartbeat=7"]


@pytest.fixture
def two(monkeypatch) -> list[tuple]:
    """As in a job of two; what this process would have left with."""
    left = []

    def leave(code: int, reason: str = "") -> None:
        left.append((code, reason))
        raise SystemExit(code)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "leave", leave)
    return left


def test_alone_errors_are_left_to_others():
    for error in (RuntimeError("Gloo all-reduce failed"), SystemExit(2), ValueError("a")):
        with pytest.raises(type(error)), distributed.together():
            raise error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"), 69),
        (OSError("a checkpoint could not be written (Barrier failed: heartbeat timeout)"), 69),
        (SystemExit(2), 2),
        (ZeroDivisionError("a bug"), 1),
    ],
)
def test_what_the_others_cannot_know_ends_a_process_at_once(two, error, code):
    with pytest.raises(SystemExit), distributed.together():
        raise error
    assert two[0][0] == code
    assert (code == 69) == ("process 0 of 2 lost another process" in two[0][1])


def test_a_connection_that_storage_closed_is_no_lost_process(two):
    reset = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    with pytest.raises(ConnectionResetError), distributed.together():
        raise reset
    assert two == []


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(75), ValueError("a wrong flag")])
def test_what_all_know_or_is_told_later_goes_on(two, error):
    with pytest.raises(type(error)), distributed.together():
        raise error
    assert two == []


def test_a_job_without_steps_is_ended_and_tells_what_it_was_doing(two, monkeypatch, capfd):
    monkeypatch.setattr(distributed, "TICK", 0.01)
    with flagsaver.as_parsed(stall="1"), distributed.together() as alive:
        time.sleep(0.1)
        assert two == []  # before the first step nothing is due
        alive()
        next(x for x in threading.enumerate() if "run" in x.name).join(timeout=30)
    code, reason = two[0]
    assert code == 69 and "took no step for 1 s" in reason
    stacks = capfd.readouterr().err
    assert "Thread 0x" in stacks and "test_a_job_without_steps_is_ended" in stacks


def test_processes_that_do_not_all_come_are_told():
    source = (
        "import sys; from absl import flags; from musicssl.runtime import distributed;"
        "flags.FLAGS(sys.argv); distributed.start()"
    )
    job = ["--coordinator=localhost:1", "--processes=2", "--process=1", "--meet=1"]
    done = subprocess.run(
        [sys.executable, "-c", source, *job], cwd=runs.ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 69
    assert done.stderr == (
        "musicssl: not all processes arrived within 1 s: start all processes again to resume\n"
    )
