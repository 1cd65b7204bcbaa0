"""What launch/README.md tells somebody with nothing but a bucket to type, as it stands there.

The commands of a pod are asked of stand-ins for Google's tools. Those of the other section, and
what the workers of the pod are told, run against the bucket on loopback, on tiny models and data.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicssl import host
from musicssl.runtime.workdir import steps_on_disk
from tests.launch.test_launchers import Cloud
from tests.support import commands, runs, small_sets
from tests.support.bucket import ROOT, Bucket

PAGE = (runs.ROOT / "launch/README.md").read_text()
BASE = f"{ROOT}/page"  # where these tests have what the page has in gs://BUCKET
TINY = runs.LEAVES | runs.OF_CONFIG[runs.MUSIC2VEC] | {"steps": 4, "checkpoint.every": 4}
PROBE = {"tasks": "synth_key", "epochs": 1, "layers": "1", "kind": "linear", "seeds": (1,)}
ELSEWHERE = ("gcloud",)  # commands that cannot be rehearsed here


def block(heading: str, number: int = 0) -> str:
    """A section's shell commands, one of its blocks."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^( *)```sh\n(.*?)^ *```$", section, re.DOTALL | re.MULTILINE)
    indent, text = found[number]
    return "\n".join(line.removeprefix(indent) for line in text.splitlines())


def words(text: str) -> list[list[str]]:
    """The words of each command."""
    lines = text.replace("\\\n", " ").replace("gs://BUCKET", BASE).splitlines()
    return [split for line in lines if (split := shlex.split(line, comments=True))]


def tiny(module: str, folder: Path) -> list[str]:
    """The flags that make a command of the page as small as a test can bear."""
    leaves = {
        "musicssl.main": TINY | {"data.name": "music_folder"},
        "musicssl.probe": PROBE | {"cache": folder},
    }
    more = ["--workers=1"] if module == "data_pipelines.build" else []
    return more + [f"--config.{leaf}={value}" for leaf, value in leaves.get(module, {}).items()]


@pytest.fixture
def cloud(tmp_path) -> Cloud:
    return Cloud(tmp_path)


def pod(cloud: Cloud) -> list[list[str]]:
    """What the page's commands for a pod ask of Google's tools."""
    (cloud.folder / "states").write_text("ACTIVE\nACTIVE\n")
    script = "\n".join(["set -euo pipefail", block("Rehearse, then pay", 1), ""])
    script += block("Rehearse, then pay", 2)
    path = f"{cloud.folder}/bin:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=runs.ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PATH": path, "RECORDS": str(cloud.folder), "POLL": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return cloud.calls


def told(calls: list[list[str]]) -> list[str]:
    """The command that every worker of a pod is told to repeat."""
    whole = next(x[-1] for x in calls if "launch/again.sh" in x[-1])
    return shlex.split(whole.partition("launch/again.sh -- ")[2].partition(" > ")[0])


def test_a_pod_is_asked_for_as_the_page_says(cloud):
    calls = pod(cloud)
    verbs = [call[4] for call in calls if call[:3] == ["gcloud", "compute", "tpus"]]
    assert verbs == [
        *("create", "describe", "scp", "ssh", "ssh", "ssh", "ssh"),
        *("delete", "create", "describe", "scp", "ssh", "ssh", "ssh", "delete"),
    ]
    train = told(calls)
    assert train[:3] == ["python", "-m", "musicssl.main"]
    assert train[-1] == "--config.data.mirror=/dev/shm/data"
    manifest = (cloud.folder / "manifest").read_text()
    assert (
        f"args: {json.dumps(train[3:])}" in manifest and "serviceAccountName: trainer" in manifest
    )


@pytest.fixture(scope="module")
def music(tmp_path_factory, bucket: Bucket) -> Path:
    """A folder of audio; and the data of a task of probes, which else would take minutes."""
    root, rng = tmp_path_factory.mktemp("music"), np.random.default_rng(0)
    for number in range(6):
        soundfile.write(root / f"{number}.flac", rng.normal(0, 0.1, 32_000), 16_000)
    composed = tmp_path_factory.mktemp("composed")
    small_sets.music(composed)
    bucket.copy(composed, "page/data")
    return root


@pytest.fixture
def run(music, monkeypatch, tmp_path) -> Callable[[list[str]], str]:
    """Run a command of the page, made tiny; returns its output."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    cache = f"{BASE}/xla"

    def run(command: list[str]) -> str:
        given = [word.replace("FOLDER", str(music)) for word in command]
        if given[0] == "python":
            module, *flags = given[2:]
            process = commands.Process(
                commands.module, module, *flags, *tiny(module, tmp_path), cache=cache
            )
            output, errors = process.communicate()
        else:
            given = [*given, *tiny(given[4], tmp_path)]
            process = subprocess.run(
                given, cwd=runs.ROOT, capture_output=True, text=True, check=False
            )
            output, errors = process.stdout, process.stderr
        assert process.returncode == 0, (command, output, errors)
        return output

    return run


@pytest.mark.slow
def test_nothing_but_a_bucket_is_needed(run, bucket, monkeypatch, tmp_path):
    """Everything of the section, from building to the weights that another run starts from."""
    monkeypatch.chdir(tmp_path)
    typed = words(block("Nothing but a bucket"))
    done = []
    for command in typed:
        name = command[0]
        if name == "export":
            monkeypatch.setenv(*command[1].split("="))
        elif name == "tensorboard":  # what it would show
            output = run(["python", "-m", "tensorboard.main", "--inspect", *command[1:]])
            assert "runs/a" in output and "runs/c" in output
        elif name not in ELSEWHERE:
            if "--compare" in command:  # with another run's probes
                for held, content in bucket.files("page/runs/a/probe").items():
                    bucket.put(held.replace("runs/a", "runs/b"), content)
            done.append(run(command))
    assert len(done) == 6
    assert len(typed) == 9
    there = bucket.files("page/")
    for held in (
        *("data/music_folder/16khz/1.0.0/music_folder-train.index.npz", "runs/a/probe/results.md"),
        *("both/compare.md", "exported/model.safetensors", "runs/c/metrics.jsonl"),
    ):
        assert f"page/{held}" in there
    assert [x for x in there if x.startswith("page/xla/")]  # compiled programs
    assert steps_on_disk(host.path(f"{BASE}/runs/c")) == [0, 4]
    assert "starting from the weights of data2vec-audio" in done[-1]
    assert not [x for x in tmp_path.rglob("*") if x.name in ("gs:", "runs", "results", "data")]


@pytest.mark.slow
def test_what_a_worker_is_told_trains_from_its_own_copy(run, cloud, bucket, tmp_path):
    train = [word.replace("gs://BUCKET", BASE) for word in told(pod(cloud))]
    run(words("python -m data_pipelines.build music_folder --data_dir=gs://BUCKET/data "
              "--manual_dir=FOLDER")[0])  # fmt: skip
    copy = tmp_path / "shm"
    output = run([word.replace("/dev/shm", str(copy)) for word in train])
    assert "step 4/4" in output
    assert list(copy.rglob("*.tfrecord*"))
    assert steps_on_disk(host.path(f"{BASE}/runs/music2vec")) == [0, 4]


@pytest.mark.slow
def test_the_rehearsal_is_one(music, tmp_path, monkeypatch):
    """With data that are there from the start, where the page's command composes hours."""
    runs.write_clips(tmp_path / "held/data")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    (command,) = words(block("Nothing but a bucket", 1))
    at = command.index("--")
    flags = [f"--config.{leaf}={value}" for leaf, value in TINY.items()]
    given = [*command[:at], f"--folder={tmp_path / 'held'}", *command[at:], *flags]
    done = subprocess.run(given, cwd=runs.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "step 4/4" in done.stdout, done.stderr
    counts = json.loads(done.stderr.rpartition("bucket: ")[2])
    assert counts["faults_503"] > 3
