"""A folder of odd files from the first command to the last, in a job of two processes."""

import contextlib
import io
import json
import socket
import subprocess

from data_pipelines import build
from tests.support import commands, odd_files, runs

LEAVES = {
    "data.name": "music_folder",
    "steps": 4,
    "log_every": 2,
    "checkpoint.every": 2,
    "probe.every": 2,
    "probe.at_end": True,
    "probe.tasks": "synth_key",
    "probe.layers": "1",
    "probe.limit": 4,
    "probe.epochs": 1,
    "probe.seeds": "(1,)",
}


def main(composed: str, *arguments: str) -> None:
    """The main command, whose probes' data set is composed at `composed`, of few clips."""
    from data_pipelines.synth_music import synth_music_dataset_builder as synth_music
    from musicssl import host

    run = subprocess.run

    def compose(command: list[str], **options: object) -> subprocess.CompletedProcess:
        if command[1:4] != ["-m", "data_pipelines.build", "synth_music"]:
            return run(command, **options)
        size = synth_music.SynthMusicConfig("short", seconds=6.0, train=6, validation=4, test=4)
        synth_music.Builder(data_dir=composed, config=size).download_and_prepare()
        return subprocess.CompletedProcess(command, 0)

    host.DATA_DIR, subprocess.run = composed, compose
    commands.module("musicssl.main", *arguments)


def test_a_folder_of_odd_files_is_built_trained_on_probed_and_exported(tmp_path):
    music, data, run = tmp_path / "music", tmp_path / "data", tmp_path / "run"
    unusable = odd_files.folder(music)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        flags = [f"--manual_dir={music}", f"--data_dir={data}", "--workers=1", "--max_lost=0.6"]
        assert build.main(["music_folder", *flags]) == 0

    # one clear line for each file that cannot be used
    lines = (data / "music_folder/16khz/1.0.0/skipped.tsv").read_text().splitlines()
    told = dict(line.removeprefix("broken/").split("\t") for line in lines)
    assert told.keys() == unusable.keys() and len(lines) == len(told)
    assert {name: told[name] for name in told if not told[name].startswith(unusable[name])} == {}
    assert "skipped  17 of 33 files" in out.getvalue()

    # two processes train, and the first probes what they have trained
    port = socket.create_server(("localhost", 0)).getsockname()[1]
    arguments = runs.flags(runs.MUSIC2VEC, run, data, LEAVES)
    arguments += [f"--coordinator=localhost:{port}", "--processes=2"]
    composed = str(tmp_path / "composed")
    job = [
        commands.Process(main, composed, *arguments, f"--process={number}", cache=tmp_path / "xla")
        for number in range(2)
    ]
    said = [process.communicate() for process in job]
    assert [process.returncode for process in job] == [0, 0], said
    assert not (data / "synth_music").exists()
    probed = [line["step"] for line in runs.scalars(run) if "probe/synth_key" in line]
    assert probed == [2, 4]
    results = json.loads((run / "probe/results.json").read_text())
    assert list(results["tasks"]) == ["synth_key"]
    assert "random initial values" in (run / "probe/compare.md").read_text()

    export = ["musicssl.export", f"--workdir={run}", f"--output={tmp_path / 'model'}"]
    process = commands.Process(commands.module, *export)
    said = process.communicate()
    assert process.returncode == 0, said
    assert {"config.json", "model.safetensors", "README.md"} <= {
        path.name for path in (tmp_path / "model").iterdir()
    }
