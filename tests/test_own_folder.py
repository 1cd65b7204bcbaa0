"""A folder of odd files from the first command to the last."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines import build
from tests.support import commands, odd_files, runs

pytestmark = pytest.mark.slow

LEAVES = {
    "data.name": "music_folder",
    "steps": 4,
    "log_every": 2,
    "checkpoint.every": 2,
    "probe.every": 4,
    "probe.at_end": True,
    "probe.tasks": "synth_key",
    "probe.layers": "1",
    "probe.limit": 4,
    "probe.epochs": 1,
    "probe.seeds": "(1,)",
}


def main(composed: str, *arguments: str) -> None:
    """The main command, whose probes' data set is composed at `composed`, of few clips.

    The command that would take its place is printed.
    """
    from musicssl import host
    from tests.support import small_sets

    run = subprocess.run

    def compose(command: list[str], **options: object) -> subprocess.CompletedProcess:
        if command[1:4] != ["-m", "data_pipelines.build", "synth_music"]:
            return run(command, **options)
        with contextlib.redirect_stdout(sys.stderr):
            small_sets.music(Path(composed), train=6, validation=4, test=4)
        return subprocess.CompletedProcess(command, 0)

    def follow(path: str, command: list[str]) -> None:
        print("THEN", json.dumps(command), flush=True)
        sys.exit(0)

    host.DATA_DIR, subprocess.run, os.execv = composed, compose, follow
    commands.module("musicssl.main", *arguments)


def succeed(process: commands.Process) -> str:
    """Wait for a process; return what it said."""
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


def test_a_folder_of_odd_files_is_built_trained_on_probed_and_exported(tmp_path):
    music, data, run = tmp_path / "music", tmp_path / "data", tmp_path / "run"
    unusable = odd_files.folder(music)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        flags = [f"--manual_dir={music}", f"--data_dir={data}", "--workers=1", "--max_lost=0.6"]
        assert build.main(["music_folder", *flags]) == 0

    # One clear line for each file that cannot be used.
    lines = (data / "music_folder/16khz/1.0.0/skipped.tsv").read_text().splitlines()
    told = dict(line.removeprefix("broken/").split("\t") for line in lines)
    assert told.keys() == unusable.keys() and len(lines) == len(told)
    assert {name: told[name] for name in told if not told[name].startswith(unusable[name])} == {}
    assert "skipped  19 of 36 files" in out.getvalue()

    # Training, with a probe of its own, for which music is composed elsewhere than in the data.
    flags = runs.flags(runs.MUSIC2VEC, run, data, LEAVES)
    said = succeed(commands.Process(main, str(tmp_path / "composed"), *flags))
    assert not (data / "synth_music").exists()
    probed = [line["step"] for line in runs.scalars(run) if "probe/synth_key" in line]
    assert probed == [4]

    # The command that follows it, and the export.
    then = json.loads(said.rpartition("THEN")[2])
    assert then[:3] == [sys.executable, "-m", "musicssl.probe"]
    succeed(commands.Process(commands.module, *then[2:]))
    results = json.loads((run / "probe/results.json").read_text())
    assert list(results["tasks"]) == ["synth_key"]
    assert "random:" in (run / "probe/compare.md").read_text()
    model = tmp_path / "model"
    succeed(
        commands.Process(
            commands.module, "musicssl.export", f"--workdir={run}", f"--output={model}"
        )
    )
    names = {path.name for path in model.iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= names
