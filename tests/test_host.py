"""Where the wings meet: one owner of what is written, and data that are composed when needed."""

import errno
import os
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import claim
from musicssl import host
from tests.support import record_files

REMEDY = "use another folder"


def test_a_folder_is_of_one_job_and_the_next_is_told_whose(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "PATIENCE", 0.0)
    run = tmp_path / "runs/a"
    owner = f"{run} is in use by process {os.getpid()} on .+ since 20.+: {REMEDY}"
    with host.claimed(run, REMEDY), pytest.raises(ValueError, match=owner):
        host.claimed(run, REMEDY).__enter__()
    with host.claimed(run, REMEDY):
        (run / "config.json").touch()
    assert [path.name for path in run.iterdir()] == ["config.json"]
    with host.claimed(tmp_path / "refused", REMEDY):  # nothing comes of it
        pass
    assert not (tmp_path / "refused").exists()


def test_a_job_that_still_saves_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claim, "_LOOK_EVERY", 0.02)
    first = host.claimed(tmp_path, REMEDY)
    first.__enter__()
    threading.Timer(0.2, first.__exit__, (None, None, None)).start()
    with host.claimed(tmp_path, REMEDY):
        said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.endswith(": waiting up to 60 s for that to end\n") and str(os.getpid()) in said
    assert host.PATIENCE > claim.SILENT_AFTER  # whoever waits sees that a machine is gone


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_needs_no_owner_or_is_refused(
    tmp_path, monkeypatch, reason
):
    def refuse(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(claim, "_taken", refuse)
    with host.claimed(tmp_path, REMEDY):
        pass
    message = rf"{tmp_path} cannot be written to \({os.strerror(reason)}\): change that, or"
    with pytest.raises(ValueError, match=message):
        host.claimed(tmp_path, REMEDY, writes=True).__enter__()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(ValueError, match="x is a file: give a folder"):
        host.claimed(tmp_path / "x", REMEDY).__enter__()


@pytest.fixture
def composed(monkeypatch) -> list[list[str]]:
    """The commands by which data sets would be composed; one writes a record."""
    commands = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        commands.append(command[1:])
        name, data_dir = command[3], command[4].partition("=")[2]
        code = {"full": 2, "ended": 128 + signal.SIGTERM, "away": 74}.get(Path(data_dir).name, 0)
        if not code:
            clip = record_files.noise(np.random.default_rng(0), 60_000)
            record_files.write(Path(data_dir) / name / "16khz/1.0.0", {"train": [[clip]]})
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(host.subprocess, "run", run)
    return commands


@pytest.mark.parametrize("name", host.SYNTHESISED)
def test_what_needs_no_download_is_composed_once(name, tmp_path, composed, capsys):
    for _ in range(2):
        host.require_labelled(name, str(tmp_path), 16_000)
    command = ["-m", "data_pipelines.build", name, f"--data_dir={tmp_path}", "--wait"]
    assert composed == [command]
    assert capsys.readouterr().err == (f"musicssl: {name} is not in {tmp_path} yet: composing it\n")


def test_another_config_does_not_stand_for_the_default(tmp_path, composed):
    config = tmp_path / "synth_music/.config/metadata.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"default_config_name": "16khz"}')
    record_files.write(
        tmp_path / "synth_music/16khz_varied/1.0.0", {"train": [[np.arange(9, dtype=np.int16)]]}
    )
    host.require_labelled("synth_music", str(tmp_path), 16_000)
    assert len(composed) == 1


def test_what_cannot_be_composed_is_told(tmp_path, composed):
    again = f"build it with python -m data_pipelines.build synth_music --data_dir={tmp_path}/full"
    with pytest.raises(host.NotComposed, match=again):
        host.require_labelled("synth_music", f"{tmp_path}/full", 16_000)
    with pytest.raises(OSError, match="the storage did not answer") as caught:
        host.require_labelled("synth_music", f"{tmp_path}/away", 16_000)
    assert caught.value.errno == errno.EIO  # which may be tried again
    with pytest.raises(KeyboardInterrupt):  # a job that is asked to end is not refused
        host.require_labelled("synth_music", f"{tmp_path}/ended", 16_000)


def test_what_is_downloaded_is_left_to_its_command(tmp_path, composed):
    with pytest.raises(FileNotFoundError, match=r"run python -m data_pipelines\.build gtzan"):
        host.require_labelled("gtzan", str(tmp_path), 16_000)
    assert composed == []


def test_a_folder_that_its_owner_removes_is_made_again(tmp_path, monkeypatch):
    """A job that writes nothing leaves no folder, and another may be waiting for it."""
    asked, real = [], host.claim

    def removed_meanwhile(path: Path, *rest: object) -> object:
        asked.append(path)
        if len(asked) == 1:
            path.parent.rmdir()
        return real(path, *rest)

    monkeypatch.setattr(host, "claim", removed_meanwhile)
    with host.claimed(tmp_path / "out", "", writes=True):
        assert (tmp_path / "out/.claim").is_file()
    assert len(asked) == 2 and not (tmp_path / "out").exists()
