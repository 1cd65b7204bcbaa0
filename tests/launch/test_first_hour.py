"""The first hour on a GPU: the launcher with a stand-in for the interpreter, and its first rows."""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from musicssl.training import step as step_lib
from tests.benchmarks import gpu

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch/first_hour.sh"
ROWS = [
    *("agreement-musichubert", "agreement-music2vec", "musichubert-5s", "transformers-5s"),
    *("musichubert-30s", "transformers-30s", "music2vec-5s", "music2vec-30s"),
]
# Writes its arguments down and ends as it is told; scripts on stdin but the first run for real.
STAND_IN = """#!/usr/bin/env bash
if [[ $1 == - ]]; then
  if [[ $2 == true || $2 == false ]]; then exit; fi
  exec "$REAL_PYTHON" "$@"
fi
printf '%s\\n' "$*" >> "$RECORDS"
case "$*" in
  *musicssl.main*) if [[ $SAVES == True ]]; then mkdir -p "${4#--workdir=}/checkpoints/20"; fi ;;
esac
case "$*" in
  *"$FAIL_AT"*) exit "$FAIL_WITH" ;;
  *--row*) echo '{"ms a step": 50.0, "clips": 2}' > "${4#--output=}/${3#--rows=}.json" ;;
esac
"""


class FirstHour:
    """Runs the launcher, and knows what it asked its interpreter to do."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.python = folder / "python"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    @property
    def arguments(self) -> list[str]:
        return [str(SCRIPT), f"--output={self.folder}/out", f"--work={self.folder}/work"]

    def __call__(
        self,
        *arguments: str,
        fail_at: str = "nothing",
        code: int = 1,
        python: str = "",
        saves: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        told = {"FAIL_AT": fail_at, "FAIL_WITH": str(code), "RECORDS": f"{self.folder}/calls"}
        told |= {"SAVES": str(saves), "REAL_PYTHON": sys.executable}
        return subprocess.run(
            [*self.arguments, *arguments],
            env=os.environ | {"PYTHON": python or str(self.python)} | told,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def modules(self) -> list[str]:
        return [call.split()[1] for call in self.calls]


@pytest.fixture
def first_hour(tmp_path) -> FirstHour:
    return FirstHour(tmp_path)


PARTS = ["data_pipelines.build", "musicssl.main", "musicssl.probe", "musicssl.export"]
RUN = ["tests.benchmarks.gpu"] * len(ROWS) + PARTS


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
def test_a_dry_run_prints_the_commands_alone(first_hour, flag):
    done = first_hour(flag, "--minutes=30", "--", "--config.data.data_dir=my data")
    assert done.returncode == 0 and done.stderr == "" and first_hour.calls == []
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    modules = [line[line.index("-m") + 1] for line in lines]
    assert modules == [*RUN[:-3], "data_pipelines.build", *RUN[-3:]]  # to train on, and to probe
    train = lines[-3]
    assert train[-1] == "--config.data.data_dir=my data"
    assert "--config=configs/musichubert.py:reference" in train
    assert "--config.data.name=synth_music/16khz_varied" in train


def test_a_run_leaves_its_results_and_does_nothing_twice(first_hour):
    done = first_hour("--toy", "--minutes=12")
    assert done.returncode == 0, done.stderr
    assert first_hour.modules() == RUN
    rows = [call.split()[2].removeprefix("--rows=") for call in first_hour.calls[: len(ROWS)]]
    assert rows == ROWS and all(call.endswith(" --toy") for call in first_hour.calls[: len(ROWS)])
    assert {f"{row}.json" for row in ROWS} < {path.name for path in first_hour.folder.glob("out/*")}

    # a step of four clips takes twice what two took: 100 ms; a save every 120 s
    train = first_hour.calls[-3].split()
    steps = int(next(x for x in train if "config.steps=" in x).partition("=")[2])
    assert 5_000 < steps <= 10 * (12 * 60 * 5 / 6 - 36)
    assert "--config.checkpoint.every=1201" in train
    assert f"--config.optim.warmup_steps={steps // 12 + 1}" in train

    assert first_hour("--toy", "--minutes=12").returncode == 0
    assert first_hour.modules()[len(RUN) :] == PARTS
    assert first_hour.calls[-3].split() == train  # the same run goes on


def test_music2vec_has_no_codebook(first_hour):
    done = first_hour("--toy", "--only=train", "--config=configs/music2vec.py:crop5s")
    assert done.returncode == 0, done.stderr
    (train,) = first_hour.calls
    assert "teacher." not in train and "warmup" not in train and "music2vec.py:crop5s" in train


@pytest.mark.parametrize("part", ["agreement-music2vec", "data_pipelines.build", "musicssl.probe"])
def test_a_part_that_fails_is_named_and_the_others_run(first_hour, part):
    done = first_hour("--toy", fail_at=part)
    assert done.returncode == 1 and first_hour.modules() == RUN
    name = {"agreement-music2vec": "check", "musicssl.probe": "probe"}.get(part, "compose")
    assert done.stderr.splitlines()[-1] == f"first_hour.sh: failed: {name}"


def test_a_run_whose_time_is_over_has_saved(first_hour):
    done = first_hour("--toy", "--only=train,export", fail_at="musicssl.main", code=75)
    assert done.returncode == 0 and "the time is over; the run is saved" in done.stderr
    assert first_hour.modules() == ["musicssl.main", "musicssl.export"]


def test_a_run_whose_time_is_over_before_it_saves_has_failed(first_hour):
    done = first_hour("--toy", "--only=train,probe", fail_at="main", code=75, saves=False)
    assert done.returncode == 1 and first_hour.modules() == ["musicssl.main"]
    assert done.stderr.splitlines()[-1] == "first_hour.sh: failed: train probe"


def test_sigterm_reaches_the_part_and_the_next_does_not_begin(first_hour):
    first_hour.python.write_text(
        "#!/usr/bin/env bash\n[[ $1 == - ]] && exit\n"
        "trap 'echo asked; exit 75' TERM\necho ready; while true; do sleep 0.02; done\n"
    )
    process = subprocess.Popen(
        [*first_hour.arguments, "--toy", "--only=compose,probe"],
        env=os.environ | {"PYTHON": str(first_hour.python)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (75, "asked\n")
    assert errors.endswith("asked to end; the same command resumes\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes=soon"], "--minutes=soon: give a whole number"),
        (["--minutes=0"], "--minutes=0: give a whole number"),
        (["--config=configs/nothing.py:a"], "there is no file configs/nothing.py"),
        (["--only=check,teach"], "there is no part teach, use some of check,benchmark,"),
        (["--config.steps=3"], "--config.steps=3: unknown, or has no value"),
        (["--output="], "--output=: unknown, or has no value"),
        (["--output=gs://a/b"], "gs://a/b is not a path on this machine: copy the results"),
        (["--work=s3://a/b"], "s3://a/b is not a path on this machine"),
    ],
)
def test_what_is_wrong_is_named_in_one_line_before_anything_runs(first_hour, arguments, message):
    done = first_hour(*arguments)
    assert done.returncode == 2 and first_hour.calls == []
    assert done.stderr.startswith("first_hour.sh: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


def test_packages_that_are_missing_are_named_with_their_command(first_hour, tmp_path):
    bare = tmp_path / "bare"
    bare.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} -S "$@"\n')  # no packages at all
    bare.chmod(0o755)
    done = first_hour("--only=check", python=str(bare))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install jax flax optax ml_collections tqdm first" in done.stderr
    done = first_hour(python=str(bare))
    assert "tensorflow-cpu tensorflow-datasets orbax-checkpoint clu" in done.stderr


def test_the_rows_of_a_step_are_prepared(monkeypatch):
    """All that a row's process does before it compiles; drawing initial values takes longest."""
    name, *_ = gpu.AGREEMENT["agreement-musichubert"]
    monkeypatch.setattr(
        step_lib, "sharded_init", lambda config, mesh: step_lib.state_shapes(config)
    )
    config = gpu.configured(name, 2, 40, gpu.TOY)
    step, (state, frozen, clips) = gpu.prepared(config, jax.devices()[0])
    with jax.set_mesh(clips.sharding.mesh):
        _, metrics = jax.eval_shape(step, state, frozen, clips)
    assert {"loss", "grad_norm"} <= metrics.keys() and clips.shape[0] == config.batch_size


def test_rows_beside_transformers_are_left_out_without_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert gpu.run_row("transformers-5s", tmp_path, toy=True)
    assert "not run, it needs torch and transformers" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_step_that_disagrees_with_the_cpu_is_no_success(tmp_path, monkeypatch):
    told = json.dumps({"loss over the CPU's": 1.2, "agrees": False})
    done = subprocess.CompletedProcess([], 0, f"RESULT {told}", "")
    monkeypatch.setattr(subprocess, "run", lambda *given, **named: done)
    assert not gpu.run_row("agreement-musichubert", tmp_path, toy=True)
    assert json.loads((tmp_path / "agreement-musichubert.json").read_text())["agrees"] is False
