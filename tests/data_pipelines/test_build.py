"""The build command: what it makes and says, what it refuses, and how it stops."""

import contextlib
import grp
import io
import os
import pwd
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow as tf

from data_pipelines import batches, build, claim, decode, machine, workers
from data_pipelines.shards import ShardedBuilder
from tests.support import commands
from tests.support.bucket import ROOT, Fault


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders of one 4 s file each, and a file that is no music."""
    root = tmp_path_factory.mktemp("music")
    for number in range(3):
        (root / str(number)).mkdir()
        noise = np.random.default_rng(number).normal(0, 0.1, 64_000)
        soundfile.write(root / str(number) / "a.flac", noise, 16_000)
    (root / "0/b.mp3").write_text("no music")
    return root


@pytest.fixture(scope="module")
def built(music: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The data_dir of a built data set, and what the command said."""
    data = tmp_path_factory.mktemp("data")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        flags = [f"--data_dir={data}", f"--manual_dir={music}", "--workers=1"]
        assert build.main(["music_folder", *flags]) == 0
    return data, out.getvalue()


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Returns the one line with which the command ends."""
    capsys.readouterr()
    assert build.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("build: ") and "Traceback" not in "".join(lines)
    return lines[-1]


def test_says_what_was_built(built):
    data, out = built
    lines = dict(line.split(None, 1) for line in out.splitlines())
    assert lines["built"] == str(data / "music_folder/16khz/1.0.0")
    assert lines["records"] == "3 (train 2, validation 1) in 2 shards, 0.4 MB"
    assert lines["audio"] == "0.00 h of 3 files"
    assert lines["skipped"].startswith("1 of 4 files; 1 not audio")
    assert lines["time"].endswith("x real time, 1 workers")


def test_what_was_built_can_be_read_and_is_indexed(built):
    folder = built[0] / "music_folder/16khz/1.0.0"
    assert {path.name for path in folder.glob("*.index.npz")} == {
        "music_folder-train.index.npz",
        "music_folder-validation.index.npz",
    }
    dataset = batches.open_dataset("music_folder/16khz", built[0], "train")
    assert sorted(dataset.samples) == [64_000, 64_000]


def test_built_is_left_alone(built, music, capsys):
    data = built[0]
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    assert build.main(["music_folder", f"--data_dir={data}", f"--manual_dir={music}"]) == 0
    assert "is already built (3 records); remove it to build it again" in capsys.readouterr().out
    other = refused(capsys, "music_folder", f"--data_dir={data}", f"--manual_dir={data}")
    assert f"was built from {music}" in other and f"another --data_dir for {data}" in other
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_a_bucket_is_built_into_like_a_disk(built, music, bucket, capsys):
    data, said = built
    flags = [f"--data_dir={ROOT}/built", f"--manual_dir={music}", "--workers=1"]
    assert build.main(["music_folder", *flags]) == 0
    there = bucket.files("built/")
    local = {f"built/{x.relative_to(data)}": x for x in data.rglob("*") if x.is_file()}
    assert {name for name in there if not name.endswith("/")} == set(local)
    for name, path in local.items():
        if ".tfrecord-" in name or path.suffix in (".tsv", ".txt"):
            assert there[name] == path.read_bytes()
    out = capsys.readouterr().out
    assert out.splitlines()[1:4] == said.splitlines()[1:4]

    # once more, and without its index
    index = next(name for name in there if name.endswith("train.index.npz"))
    bucket.delete(index)
    with bucket.suffering():
        assert build.main(["music_folder", *flags]) == 0
        assert "is already built (3 records)" in capsys.readouterr().out
    with np.load(io.BytesIO(bucket.files()[index])) as again, np.load(local[index]) as first:
        assert all(np.array_equal(again[key], first[key]) for key in first)
    dataset = batches.open_dataset("music_folder", f"{ROOT}/built", "train")
    assert dataset.samples.tolist() == [64_000] * 2

    # of a build that was killed while its folder was given its name
    bucket.copy(data, "cut")
    bucket.delete(f"cut/music_folder/16khz/1.0.0/{build.SOURCE}")
    line = refused(capsys, "music_folder", f"--data_dir={ROOT}/cut", f"--manual_dir={music}")
    assert "holds no complete data set; remove it" in line


def test_a_bucket_that_is_away_ends_a_build_that_may_be_started_again(music, bucket, capsys):
    flags = [f"--data_dir={ROOT}/away", f"--manual_dir={music}", "--workers=1"]

    def away(*_: object) -> None:
        raise tf.errors.UnavailableError(None, None, "503\nand more")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardedBuilder, "_run", away)
        assert build.main(["music_folder", *flags]) == 74
    assert capsys.readouterr().err.splitlines()[-1] == "build: 503 and more"
    assert build.main(["music_folder", *flags]) == 0
    assert not [name for name in bucket.files("away/") if "claim" in name or "incomplete" in name]


def test_paths_that_cannot_be(music, tmp_path, capsys):
    data = f"--data_dir={tmp_path}"
    line = refused(capsys, "music_folder", data, "--manual_dir=gs://b/music")
    assert "gs://b/music has to be a folder of this machine: copy it to a disk" in line
    line = refused(capsys, "music_folder", "--data_dir=s3://b/d", f"--manual_dir={music}")
    assert "s3:// is not supported (Orbax does not save there" in line and "use gs://" in line
    assert "names no bucket" in refused(capsys, "music_folder", "--data_dir=gs://")
    assert "write gs://BUCKET" in refused(capsys, "music_folder", "--data_dir=gs:/abc/b")
    assert machine.anywhere("gs://abc/~x/") == "gs://abc/~x"


def test_wrong_flags_are_refused_by_name(music, tmp_path, capsys):
    data = f"--data_dir={tmp_path}"
    known = refused(capsys, "music_fodler", data)
    assert "no builder 'music_fodler'" in known and "music_folder, " in known
    assert "no config '44khz'; it has 16khz, 24khz" in refused(capsys, "music_folder/44khz", data)
    assert "name two" in refused(capsys, "music_folder/16khz", "--config=24khz", data)
    assert "needs --manual_dir=DIR" in refused(capsys, "music_folder", data)
    name = ("music_folder", data, f"--manual_dir={music}")
    assert "--manual_dir=/no is not a folder" in refused(capsys, *name, "--manual_dir=/no")
    assert "--workers=0 is less than 1" in refused(capsys, *name, "--workers=0")
    assert "--max_lost=1.5 is not a share" in refused(capsys, *name, "--max_lost=1.5")
    assert "neither this command nor Beam knows --wokers=2" in refused(capsys, *name, "--wokers=2")
    assert "neither this command nor Beam knows more" in refused(capsys, *name, "more")
    assert "its own flags" in refused(capsys, *name, "--workers=2", "--runner=DirectRunner")
    (tmp_path / "file").touch()
    assert "file: " in refused(capsys, *name, f"--data_dir={tmp_path}/file")
    assert not list(tmp_path.rglob("*.tfrecord*"))


def test_too_many_lost(music, tmp_path, capsys):
    flags = [f"--data_dir={tmp_path}", f"--manual_dir={music}", "--workers=1", "--max_lost=0.2"]
    assert "1 of 4 audio files are unusable" in refused(capsys, "music_folder", *flags)


def test_folder_without_a_data_set_is_not_overwritten(music, tmp_path, capsys):
    folder = tmp_path / "music_folder/16khz/1.0.0"
    folder.mkdir(parents=True)
    (folder / "mine.txt").touch()
    line = refused(capsys, "music_folder", f"--data_dir={tmp_path}", f"--manual_dir={music}")
    assert "exists and holds no complete data set" in line
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("beam", [[], ["--direct_num_workers=1"]])
def test_full_disk_is_one_line(music, tmp_path, capsys, monkeypatch, beam):
    def fill(self: object, source: object) -> None:
        raise OSError(28, "No space left on device")

    module = build.load_builder("music_folder", None, str(tmp_path)).__class__
    monkeypatch.setattr(module, "_generate_examples", fill)
    flags = beam or ["--workers=1"]
    line = refused(
        capsys, "music_folder", f"--data_dir={tmp_path}", f"--manual_dir={music}", *flags
    )
    assert f"the disk of --data_dir={tmp_path} is full; nothing of this build was kept" in line
    assert not list(tmp_path.rglob("*.tfrecord*")) and not list(tmp_path.rglob("incomplete*"))


def test_a_disk_that_takes_no_larger_file_is_one_line(music, tmp_path):
    flags = ["music_folder", f"--data_dir={tmp_path}", f"--manual_dir={music}", "--workers=1"]
    process = commands.Process(commands.limited, "data_pipelines.build", *flags)
    output, errors = process.communicate()
    assert (process.returncode, output) == (2, "")
    assert errors.splitlines()[-1].startswith(
        f"build: the disk of --data_dir={tmp_path} takes no larger file (ulimit -f, or its file"
    )
    assert "Traceback" not in errors and not list(tmp_path.rglob("incomplete*"))


def test_a_build_that_nobody_listens_to(music, built, tmp_path):
    """As before `| head`, or after a connection is lost."""
    flags = ["music_folder", f"--data_dir={tmp_path}", f"--manual_dir={music}", "--workers=1"]
    process = commands.Process(commands.module, "data_pipelines.build", *flags)
    process.stdout.close()
    process.stderr.close()
    assert process.wait() == 0
    wanted = batches.open_dataset("music_folder/16khz", built[0], "train")
    found = batches.open_dataset("music_folder/16khz", tmp_path, "train")
    np.testing.assert_array_equal(found.samples, wanted.samples)


def test_flags_for_beam():
    fields = build._beam_options(["--runner=DirectRunner", "--direct_num_workers=3"])
    assert fields["beam_runner"] == workers.LOCAL_RUNNER  # the default would download Prism
    assert fields["beam_options"].get_all_options()["direct_num_workers"] == 3
    fields = build._beam_options(
        ["--runner=FlinkRunner", "--flink_master=here:1", "--parallelism=4"]
    )
    assert fields["beam_runner"] == "FlinkRunner"


def test_every_builder_is_found_and_sharded(tmp_path):
    assert {"music_folder", "synth_music"} <= set(build.names())
    for name in build.names():
        assert isinstance(build.load_builder(name, None, str(tmp_path)), ShardedBuilder)


def stalled(*arguments: str) -> None:
    """The command, which says when it decodes, and comes to no file's end."""

    def load(*_: object) -> None:
        os.write(1, b"decoding\n")
        time.sleep(60)

    decode.load = load
    commands.module("data_pipelines.build", *arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stopped_build_leaves_nothing_and_the_next_one_succeeds(music, tmp_path, number):
    """A signal while a file is decoded, in a process of its own."""
    command = ["music_folder", f"--data_dir={tmp_path}", f"--manual_dir={music}", "--workers=1"]
    process = commands.Process(stalled, *command)
    folder = tmp_path / "music_folder/16khz"
    assert process.stdout.readline() == "decoding\n"
    assert len(list(folder.glob("incomplete.*"))) == 1
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 128 + number
    assert list(folder.iterdir()) == []
    (folder / "incomplete.ABCDEF_1.0.0").mkdir()  # as SIGKILL would leave it
    process = commands.Process(commands.module, "data_pipelines.build", *command)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "incomplete.ABCDEF_1.0.0 is from a build that was killed" in errors
    assert "3 (train 2, validation 1)" in output
    assert "files/s" in errors and "Traceback" not in errors


def test_second_start_is_told_who_builds_and_a_killed_one_is_followed(music, tmp_path, capsys):
    flags = ["music_folder", f"--data_dir={tmp_path}", f"--manual_dir={music}", "--workers=1"]
    process = commands.Process(stalled, *flags)
    assert process.stdout.readline() == "decoding\n"
    folder = tmp_path / "music_folder/16khz"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    line = refused(capsys, *flags)
    host = socket.gethostname()
    assert f"1.0.0 is being built by process {process.process.pid} on {host} since 20" in line
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    process.kill()
    process.communicate()
    assert list(folder.glob(".*claim"))  # left, and nobody's
    assert build.main(flags) == 0
    assert "3 (train 2, validation 1)" in capsys.readouterr().out
    assert not list(folder.glob(".*claim"))


def test_a_build_waits_for_one_that_is_under_way_and_uses_what_it_made(
    built, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(claim, "_LOOK_EVERY", 0.02)
    shutil.copytree(built[0], tmp_path, dirs_exist_ok=True)
    made = tmp_path / "music_folder/16khz/1.0.0"
    aside = made.rename(made.with_name("incomplete"))
    other = claim.claim(made.with_name(".1.0.0.claim"))
    other.__enter__()

    def end() -> None:
        aside.rename(made)
        other.__exit__(None, None, None)

    threading.Timer(0.2, end).start()
    assert build.main(["music_folder", f"--data_dir={tmp_path}", "--wait"]) == 0
    said = capsys.readouterr()
    assert "is already built (3 records)" in said.out
    assert f"is being built by process {os.getpid()} on" in said.err
    assert said.err.endswith(": waiting, 0 s so far\n") and said.err.count("\n") == 1


def test_folders_by_any_name(music, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    strange = tmp_path / os.fsdecode(b"caf\xe9 [1]")
    strange.symlink_to(music)
    flags = [f"--manual_dir={strange}", "--workers=1", "--data_dir=~/a [1] b"]
    for said in ("3 (train 2, validation 1)", "is already built (3 records)"):
        assert build.main(["music_folder", *flags]) == 0
        assert said in capsys.readouterr().out
    assert (tmp_path / "a [1] b/music_folder/16khz/1.0.0/dataset_info.json").exists()
    assert batches.is_built("music_folder", tmp_path / "a [1] b")
    monkeypatch.chdir(music)
    assert build.main(["music_folder", "--manual_dir=.", "--workers=1", "--data_dir=~/c"]) == 0
    line = refused(capsys, "music_folder", f"--manual_dir={music}", f"--data_dir={strange}/d")
    assert r"caf\udce9 [1]/d is not valid UTF-8" in line
    line = refused(capsys, "music_folder", f"--manual_dir={music}", "--data_dir=~nobody-at-all/d")
    assert "home directory is not known" in line


def test_files_of_an_owner_without_a_name(music, tmp_path, capsys, monkeypatch):
    def nameless(number: int) -> None:
        raise KeyError(f"uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", nameless)
    monkeypatch.setattr(grp, "getgrgid", nameless)
    flags = [f"--manual_dir={music}", "--workers=1", f"--data_dir={tmp_path}"]
    for _ in range(2):
        assert build.main(["music_folder", *flags]) == 0
    assert len(batches.open_dataset("music_folder", tmp_path, "train")) == 2


def test_one_process_where_there_can_be_no_more(music, tmp_path, capsys, monkeypatch):
    def no_semaphores(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", no_semaphores)
    flags = [f"--manual_dir={music}", "--workers=2", f"--data_dir={tmp_path}"]
    assert build.main(["music_folder", *flags]) == 0
    said = capsys.readouterr()
    assert "3 (train 2, validation 1)" in said.out
    assert "Read-only file system): one process does all the work" in said.err


def test_noise_of_decoders_is_discarded_and_python_is_heard(capfd):
    with build._silent_decoders():
        os.write(2, b"Illegal Audio-MPEG-Header\n")
        print("an error", file=sys.stderr)
    os.write(2, b"again\n")
    captured = capfd.readouterr().err
    assert "Illegal" not in captured and "again" in captured


@pytest.mark.parametrize("requests", ["", "^(POST|PUT)"])
def test_a_bucket_that_refuses_is_told_in_one_line(music, bucket, capsys, requests):
    given = (f"--data_dir={ROOT}/closed", f"--manual_dir={music}", "--workers=1")
    with bucket.suffering(Fault("403", requests)):
        line = refused(capsys, "music_folder", *given)
    assert f"{ROOT}/closed" in line and "the bucket refuses (" in line and "gcloud auth" in line
    assert not bucket.files("closed/")


def test_a_bucket_that_does_not_exist_is_told_before_anything_is_built(music, bucket, capsys):
    line = refused(capsys, "music_folder", "--data_dir=gs://nowhere/data", f"--manual_dir={music}")
    assert "there is no bucket nowhere: create it first" in line
