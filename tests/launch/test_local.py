"""launch/local.py: its contract with stand-ins, and a real job that loses a process and goes on."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support import runs

LOCAL = str(runs.ROOT / "launch/local.py")


def start(options: list[str], command: list[str], env: dict | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, LOCAL, *options, "--", *command],
        cwd=runs.ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def job(options: list[str], source: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a job of processes that run this source."""
    source = f"import os, sys, time; me = os.environ['JAX_PROCESS_ID']\n{source}"
    process = start(options, [sys.executable, "-S", "-c", source])
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def test_every_process_is_told_who_it_is_and_its_lines_bear_its_number():
    code, output, errors = job(
        ["--processes=3", "--devices=5"],
        "names = 'JAX_NUM_PROCESSES', 'JAX_COORDINATOR_ADDRESS', 'JAX_PLATFORMS', 'XLA_FLAGS'\n"
        "print('out', *(os.environ[x].split()[-1] for x in names)); sys.stderr.write('err')",
    )
    assert code == 0
    lines = sorted(output.splitlines())
    address = lines[0].split()[3]
    assert address.startswith("localhost:")
    rest = f"out 3 {address} cpu --xla_force_host_platform_device_count=5"
    assert lines == [f"[{i}] {rest}" for i in range(3)]
    assert sorted(errors.splitlines()) == [f"[{i}] err" for i in range(3)]


def test_a_bar_is_shown_while_it_moves_but_not_at_every_move():
    bar = "".join(f"\\r{n} %" for n in range(100)) + "\\rall\\nend\\n"
    code, output, _ = job(["--processes=1"], f"sys.stdout.write('{bar}')")
    assert code == 0 and output.splitlines() == ["[0] 0 %", "[0] all", "[0] end"]


def test_the_exit_code_is_that_of_the_first_to_fail_and_none_outlives_it_for_long():
    began = time.monotonic()
    code, _, errors = job(
        ["--processes=3", "--grace=0.5"],
        "if me == '2': sys.exit(7)\ntime.sleep(0.2 if me == '0' else 600); sys.exit(69)",
    )
    assert code == 7 and time.monotonic() - began < 60
    assert "killing the processes that did not end within 0.5 s" in errors
    assert errors.endswith("process 2 ended first, with exit code 7\n")
    code, _, errors = job([], "if me == '1': os.kill(os.getpid(), 9)")
    assert code == 128 + 9 and "process 1 ended first, with signal 9" in errors


@pytest.mark.parametrize(
    ("code", "options", "lives"),
    [(69, "--restarts=2", 3), (134, "--restarts=1", 2), (75, "--restarts=1", 2)]
    + [(final, "--restarts=9", 1) for final in (2, 3)],
)
def test_restarts(tmp_path, code, options, lives):
    seen = f"open({str(tmp_path)!r} + f'/{{me}}', 'a').write('x')"
    exit_code, _, errors = job([options], f"{seen}; sys.exit({code})")
    assert exit_code == code
    assert [len((tmp_path / name).read_text()) for name in "01"] == [lives, lives]
    assert errors.count("starting again") == lives - 1


def test_a_job_that_ends_well_is_not_started_again(tmp_path):
    seen = f"path = {str(tmp_path)!r} + f'/{{me}}'; n = os.path.exists(path); open(path, 'a')"
    code, output, errors = job(["--restarts=5"], f"{seen}; print(n); sys.exit(0 if n else 69)")
    assert code == 0 and errors.count("starting again") == 1
    assert sorted(output.splitlines()) == ["[0] False", "[0] True", "[1] False", "[1] True"]


def waiting(at_sigterm: str) -> subprocess.Popen:
    """A job of two processes that wait, once both do."""
    source = (
        "import os, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: {at_sigterm})\n"
        "print('ready', flush=True)\nwhile True: time.sleep(60)"
    )
    process = start(["--restarts=3"], [sys.executable, "-S", "-c", source])
    assert {process.stdout.readline() for _ in range(2)} == {"[0] ready\n", "[1] ready\n"}
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_every_process_is_asked_to_end_and_none_is_started_again(number):
    process = waiting("sys.exit(75)")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75 and output == ""
    assert "starting again" not in errors


def test_a_second_ctrl_c_kills_every_process():
    process = waiting("print('asked', flush=True)")
    process.send_signal(signal.SIGINT)
    assert {process.stdout.readline() for _ in range(2)} == {"[0] asked\n", "[1] asked\n"}
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL


def test_a_job_goes_on_where_nobody_reads_what_it_says(tmp_path):
    say = "import os, sys; [print('x' * 1000, flush=True) for _ in range(200)]; "
    done = f"open({str(tmp_path)!r} + '/' + os.environ['JAX_PROCESS_ID'], 'w')"
    process = start([], [sys.executable, "-S", "-c", say + done])
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
def test_a_dry_run_prints_what_each_process_would_run(flag):
    command = ["python", "-m", "musicssl.main", "--workdir=my runs"]
    process = start([flag, "--processes=2"], command)
    lines = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 0 and len(lines) == 2
    for number, line in enumerate(lines):
        words = shlex.split(line)
        assert words[0] == "env" and words[-4:] == command
        assert f"JAX_PROCESS_ID={number}" in words and "JAX_NUM_PROCESSES=2" in words


SUMS = """
import os, pathlib, signal, sys, time
import jax, numpy as np
from absl import flags
from musicssl.runtime import distributed, sharding

rest = flags.FLAGS(sys.argv)
distributed.start()
mesh, path, me = sharding.make_mesh(), pathlib.Path(rest[1]), jax.process_index()
rows = sharding.rows_here(mesh, 4)
mean = jax.jit(lambda x: x.mean())
first = int(path.read_text()) if path.exists() else 0
with distributed.together() as alive, jax.set_mesh(mesh):
    for step in range(first, 10):
        clips = sharding.place_clips(mesh, 4, rows, np.float32(10 * step + rows)[:, None])
        print(first, step, mean(clips).item(), flush=True)
        alive()
        if not me:
            path.write_text(str(step))
        if step == 5 and not first and me == 1:
            os.kill(os.getpid(), getattr(signal, rest[2]))
jax.distributed.shutdown()
"""


@pytest.fixture(scope="module")
def losing(tmp_path_factory) -> Iterator[dict[str, subprocess.Popen]]:
    """Jobs of two processes of two devices that sum, where one is killed or hangs.

    Both jobs at once, since they wait for most of their time.
    """
    folder, jobs = tmp_path_factory.mktemp("steps"), {}
    for end, limit, grace in (("SIGKILL", "--heartbeat=8", 20), ("SIGSTOP", "--stall=6", 3)):
        options = ["--devices=2", "--restarts=1", f"--grace={grace}"]
        command = [sys.executable, "-c", SUMS, limit, str(folder / end), end]
        jobs[end] = start(options, command, os.environ | {"PYTHONPATH": str(runs.ROOT)})
    yield jobs
    for process in jobs.values():
        process.terminate()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "said"),
    [
        # which of the two comes first depends on what gloo was doing
        ("SIGKILL", "process 0 of 2 lost another process|that another task died"),
        ("SIGSTOP", "musicssl: process 0 of 2 took no step for 6 s"),
    ],
)
def test_a_job_that_loses_a_process_goes_on(losing, end, said):
    output, errors = losing[end].communicate(timeout=180)
    assert losing[end].returncode == 0, errors
    assert re.search(said, errors) and errors.count("starting again") == 1
    said = re.findall(r"^\[\d\] (\d+) (\d+) ([\d.]+)$", output, re.MULTILINE)
    for first in "05":
        steps = [[step, value] for life, step, value in said if life == first]
        ends = 6 if first == "0" else 10
        expected = [[str(step), f"{10 * step + 1.5}"] for step in range(int(first), ends)]
        assert sorted(steps) == sorted(2 * expected)
