"""The launch scripts, with a stand-in for the interpreter that records what it is asked to run."""

import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MUSICHUBERT = ROOT / "launch/musichubert.sh"
STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$PWD" "$@" > "$RECORDS/$(ls "$RECORDS" | wc -l)"
case "$*" in *"$FAIL_AT"*) exit "$FAIL_WITH" ;; esac
"""


class Interpreter:
    """A `python` on PATH that writes its arguments down and ends as it is told."""

    def __init__(self, folder: Path) -> None:
        self.records = folder / "records"
        self.records.mkdir()
        path = folder / "bin/python"
        path.parent.mkdir()
        path.write_text(STAND_IN)
        path.chmod(0o755)
        self.path = f"{path.parent}:{os.environ['PATH']}"

    def launch(
        self, *arguments: str, fail_at: str = "nothing", code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHON"}
        environment |= {"PATH": self.path, "RECORDS": str(self.records)}
        return subprocess.run(
            [MUSICHUBERT, *arguments],
            env=environment | {"FAIL_AT": fail_at, "FAIL_WITH": str(code)},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[list[str]]:
        """The working directory and the arguments of each call, in order."""
        return [(self.records / str(i)).read_text().splitlines() for i in range(self.count)]

    @property
    def count(self) -> int:
        return len(list(self.records.iterdir()))


@pytest.fixture
def interpreter(tmp_path) -> Interpreter:
    return Interpreter(tmp_path)


def expected(flags: list[str], runs: str = "runs") -> list[list[str]]:
    return [
        [
            *("-m", "musicssl.main", f"--config=configs/musichubert.py:{variant}"),
            f"--workdir={runs}/musichubert-{variant}",
            *flags,
            *more,
        ]
        for variant, more in (
            ("k2000_iter1", []),
            ("k2000_iter2", [f"--config.teacher.encoder={runs}/musichubert-k2000_iter1"]),
        )
    ]


def test_both_iterations_run_with_the_flags_and_the_second_with_its_teacher(interpreter):
    flags = ["--config.data.data_dir=my data", "--config.mesh.fsdp", "8", "--coordinator=a:1"]
    done = interpreter.launch(*flags)
    assert done.returncode == 0 and done.stderr == ""
    assert interpreter.calls() == [[str(ROOT), *call] for call in expected(flags)]


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
def test_a_dry_run_prints_the_commands_alone(interpreter, flag):
    flags = ["--config.data.data_dir=my data", "--config.steps=2"]
    done = interpreter.launch(flag, "--runs=/big/runs", *flags)
    assert done.returncode == 0 and interpreter.count == 0
    printed = [shlex.split(line) for line in done.stdout.splitlines()]
    assert printed == [["python", *call] for call in expected(flags, "/big/runs")]


@pytest.mark.parametrize("code", [2, 3, 75])
def test_it_ends_as_the_iteration_that_did_not_complete(interpreter, code):
    done = interpreter.launch(fail_at="k2000_iter1 ", code=code)
    assert done.returncode == code and interpreter.count == 1
    wanted = "run the same command to resume" if code == 75 else f"ended with exit code {code}"
    assert "k2000_iter1" in done.stderr and wanted in done.stderr
    assert done.stderr.count("\n") == 1
    done = interpreter.launch(fail_at="py:k2000_iter2 ", code=code)  # the first is complete now
    assert done.returncode == code and interpreter.count == 3
    assert "k2000_iter2" in done.stderr and wanted in done.stderr
    done = interpreter.launch()
    assert done.returncode == 0 and interpreter.count == 5


def test_sigterm_reaches_the_iteration_and_the_next_does_not_begin(tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text(
        "#!/usr/bin/env bash\ntrap 'echo asked; exit 75' TERM\n"
        'echo "$3"; while true; do sleep 0.02; done\n'
    )
    stand_in.chmod(0o755)
    process = subprocess.Popen(
        [MUSICHUBERT],
        env=os.environ | {"PYTHON": str(stand_in)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "--config=configs/musichubert.py:k2000_iter1\n"
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (75, "asked\n") and "was preempted" in errors


@pytest.mark.parametrize("flag", ["--workdir=x", "--workdir", "--config=configs/music2vec.py"])
def test_what_the_iterations_set_themselves_is_refused(interpreter, flag):
    done = interpreter.launch("--config.steps=2", flag)
    assert done.returncode == 2 and interpreter.count == 0
    assert f"{flag}: each iteration has its own, use --runs=DIR" in done.stderr


def test_the_variants_and_fields_that_it_names_exist():
    from configs import musichubert

    first, second = (musichubert.get_config(v) for v in ("k2000_iter1", "k2000_iter2"))
    assert first.teacher.clusters == second.teacher.clusters == 2000
    assert second.teacher.feature == "layer" and second.teacher.encoder == ""
