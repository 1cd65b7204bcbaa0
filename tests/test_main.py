"""The main command: what it writes, what it refuses, and what it leaves alone."""

import ctypes
import errno
import functools
import hashlib
import importlib
import json
import os
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from configs import musichubert
from data_pipelines import batches
from musicssl import audio, host, main
from musicssl.runtime import digests, distributed, goodput
from musicssl.runtime.workdir import steps_on_disk
from tests.faults import kill
from tests.support import commands, runs
from tests.support.bucket import ROOT, Fault

SHORT = {"steps": 6, "checkpoint.every": 2, "log_every": 2}
AT_WORK = functools.partial(commands.start, pause=0.02)
ITERATION_2 = {"teacher.feature": "layer", "teacher.layer": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("main")
    runs.write_mixed(root / "data")
    return root


@pytest.fixture(scope="module")
def command(root) -> Callable[[list[str]], tuple[int, str, str]]:
    """Runs the main command: exit code, output, errors."""
    return functools.partial(commands.complete, cache=root / "cache")


@pytest.fixture(scope="module")
def refused(command) -> Callable[[list[str]], str]:
    """Runs a command that must be refused with one line; returns the line."""

    def call(arguments: list[str]) -> str:
        code, output, errors = command(arguments)
        assert code == 2, errors
        assert errors.startswith("musicssl: ") and errors.count("\n") == 1, errors
        assert "step " not in output.replace("from step", "")
        return errors

    return call


def flags(root: Path, workdir: Path, leaves: dict | None = None, config: str = runs.MUSIC2VEC):
    return runs.flags(config, workdir, root / "data", SHORT | (leaves or {}))


@pytest.fixture(scope="module")
def finished(root, command) -> Path:
    """The workdir of a complete run of music2vec, with a name that some take for a pattern."""
    workdir = root / "finished[1]"
    code, _, errors = command(flags(root, workdir))
    assert code == 0, errors
    return workdir


@pytest.fixture
def workdir(finished, tmp_path) -> Path:
    """A copy of it, for harm."""
    return shutil.copytree(finished, tmp_path / "run")


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files under a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_tensorboard_and_metrics_jsonl_hold_the_same_values(finished):
    lines = runs.scalars(finished)
    assert [line["step"] for line in lines] == [2, 4, 6]
    events = EventAccumulator(str(finished), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()["tensors"]
    assert set(tags) == set(lines[0]) - {"step"}
    assert {"loss", "target_std", "prediction_std", "ema_decay", "masked_fraction"} <= set(tags)
    for tag in tags:
        found = [(e.step, make_ndarray(e.tensor_proto).item()) for e in events.Tensors(tag)]
        expected = [(line["step"], np.float32(line[tag])) for line in lines]
        assert found == expected


@pytest.mark.slow
def test_data_in_a_bucket_train_like_those_on_a_disk(root, command, finished, bucket, tmp_path):
    """Through errors that pass, of which none is damage and none changes a batch."""
    bucket.copy(root / "data", "main")
    leaves = {"data.data_dir": f"{ROOT}/main", "data.on_damage": "skip"}
    with bucket.suffering(Fault("503", "GET .*tfrecord", every=3), Fault("reset", "", every=20)):
        code, _, errors = command(flags(root, tmp_path / "run", leaves))
        assert code == 0, errors
        assert bucket.counts["faults_503"] > 10
    lines = runs.scalars(tmp_path / "run")
    assert [line["damaged_records"] for line in lines] == [0, 0, 0]
    undisturbed = [(line["loss"], line["grad_norm"]) for line in runs.scalars(finished)]
    assert [(line["loss"], line["grad_norm"]) for line in lines] == undisturbed


def test_a_complete_run_says_so(root, command, finished):
    before = contents(finished / "checkpoints")
    code, output, _ = command(flags(root, finished))
    assert code == 0 and "complete: step 6 of 6 is in" in output
    assert contents(finished / "checkpoints") == before


def test_a_run_goes_on_where_nobody_reads_what_it_says(root, tmp_path, finished):
    """As before `| head`, or after a connection is lost."""
    process = AT_WORK(flags(root, tmp_path / "run"), root / "cache")
    process.stdout.close()
    process.stderr.close()
    assert process.wait() == 0
    assert steps_on_disk(tmp_path / "run") == steps_on_disk(finished)
    assert runs.differences(runs.state(tmp_path / "run"), runs.state(finished)) == []


def test_a_disk_that_takes_no_more_is_one_line(root, tmp_path, finished):
    """As a quota, which is met in the middle of a save: of all its arrays, one is told of."""
    given = "musicssl.main", *flags(root, tmp_path / "run")
    process = commands.Process(commands.limited, *given, cache=root / "cache")
    _, errors = process.communicate()
    assert process.returncode == 2 and errors.count("\n") == 1, errors
    assert f"{tmp_path}/run/checkpoints: a checkpoint could not be written (" in errors


def test_a_workdir_that_is_read_only(root, workdir):
    """Whether its run is complete or not."""
    arguments = flags(root, workdir)
    try:
        for path in (workdir, workdir / "checkpoints"):
            path.chmod(0o555)
        code, output, errors = unprivileged(arguments, root / "cache")
        assert (code, errors) == (0, "") and "complete: step 6 of 6 is in" in output
        assert f"python -m musicssl.export --workdir={workdir} --output=DIR" in output
    finally:
        for path in (workdir, workdir / "checkpoints"):
            path.chmod(0o755)
    shutil.rmtree(workdir / "checkpoints/6")
    before = contents(workdir)
    workdir.chmod(0o555)
    code, _, errors = unprivileged(arguments, root / "cache")
    workdir.chmod(0o755)
    assert code == 2 and errors.startswith("musicssl: ") and errors.count("\n") == 1
    assert f"{workdir} cannot be written to (Permission denied)" in errors
    assert contents(workdir) == before


def unprivileged(arguments: list[str], cache: Path) -> tuple[int, str, str]:
    """Run the main command where even root obeys the rights of files."""
    process = commands.Process(as_anybody, *arguments, cache=cache)
    said = process.communicate()
    return process.returncode, *said


def as_anybody(*arguments: str) -> None:
    """Give up the capabilities of this process (capset, with none in any set)."""
    version = struct.pack("Ii", 0x20080522, 0)
    assert ctypes.CDLL(None, use_errno=True).capset(version, bytes(24)) == 0
    del sys.modules["musicssl.main"]  # of this file's import: it is run as a command
    commands.module("musicssl.main", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/music2vec.py:nope"], "no variant 'nope' in configs/music2vec.py"),
        (
            ["--config=configs/nope.py"],
            "configs/nope.py: give a configuration",
        ),
        ([], "--config is missing: give a configuration"),
        (["--config=configs/music2vec.py:demo", "more"], "unexpected arguments ['more']"),
        (
            ["--config=configs/music2vec.py:demo", "--nothing"],
            "--nothing is not a flag of this command",
        ),
        (
            ["--config=configs/music2vec.py:demo", "--config.stepz=3"],
            'configuration. Did you mean "steps"?',
        ),
        (
            ["--config=configs/music2vec.py:demo", "--config.data.nome=x", "--config.steps=3"],
            "--config.data.nome is not in the configuration",
        ),
        (["--config=configs/music2vec.py:demo", "--config.steps=few"], "--config.steps=few"),
        (
            ["--config=configs/music2vec.py:demo", "--coordinator=localhost:1"],
            "--coordinator also needs --processes and --process",
        ),
    ],
)
def test_wrong_flags(refused, arguments, message):
    assert message in refused(arguments)


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"data.name": "songs"}, "run python -m data_pipelines.build songs --data_dir="),
        (
            {"batch_size": 6, "accumulate": 4},
            "is not a multiple of 4: 1 devices times accumulate=4",
        ),
        ({"mesh.fsdp": 3}, "mesh.fsdp is 3, but there are 1 devices"),
        ({"data.crop_frames": 400}, "lower data.crop_frames to "),
        ({"data.sample_rate": 24_000}, "data.sample_rate is 24000 Hz, but"),
        ({"precision": "float99"}, "precision is 'float99'"),
        ({"probe.every": 5, "probe.tasks": "gtzan_beat"}, "(needed for the run's probes; --config"),
    ],
)
def test_what_does_not_fit(root, refused, tmp_path, leaves, message):
    assert message in refused(flags(root, tmp_path / "run", leaves))
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_workdir_of_another_run_is_left_alone(root, refused, workdir):
    before = contents(workdir)
    message = refused(flags(root, workdir, {"optim.learning_rate": 2.0, "seed": 5}))
    assert "optim.learning_rate (0.001 there, 2.0 here), seed (1 there, 5 here)" in message
    assert "--workdir" in message
    assert contents(workdir) == before
    (workdir / "config.json").unlink()
    assert "config.json cannot be read" in refused(flags(root, workdir))


def test_a_directory_that_is_no_workdir_is_left_alone(root, refused, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["HubertModel"]}')
    before = contents(tmp_path)
    assert "config.json belongs to no run" in refused(flags(root, tmp_path))
    assert contents(tmp_path) == before


def test_a_second_start_is_told_whose_the_run_is(root, workdir):
    before = contents(workdir)
    with host.claimed(workdir, ""):
        process = commands.Process(commands.impatient, *flags(root, workdir), cache=root / "cache")
        output, errors = process.communicate()
    assert process.returncode == 2 and output == ""
    assert errors.count("\n") == 1
    assert f"{workdir} is in use by process {os.getpid()} on {socket.gethostname()} since" in errors
    assert contents(workdir) == before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


HARM = {
    "data cut off": lambda step: [truncate(path) for path in step.glob("state/**/d/*")],
    "state lost": lambda step: shutil.rmtree(step / "state"),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_checkpoint_is_named_and_nothing_changed(root, refused, workdir, harm):
    HARM[harm](workdir / "checkpoints/6")
    before = contents(workdir)
    message = refused(flags(root, workdir))
    assert f"{workdir}/checkpoints/6 cannot be restored" in message
    assert "--config.checkpoint.on_damage=older goes on from step 4" in message
    assert contents(workdir) == before


@pytest.mark.slow
def test_collapse_and_losses_that_are_not_finite_stop_with_a_code_of_their_own(
    root, command, tmp_path
):
    collapsed = {"data2vec.min_target_std": 9.0, "data2vec.guard_after": 1}
    code, _, errors = command(flags(root, tmp_path / "collapsed", collapsed))
    assert code == 3 and errors.count("\n") == 1
    assert "musicssl: stopped: at step 2 target_std is" in errors
    code, _, errors = command(flags(root, tmp_path / "infinite", {"optim.learning_rate": 1e38}))
    assert code == 3 and errors.count("\n") == 1
    assert "between steps" in errors and "were not finite" in errors
    state = runs.state(tmp_path / "infinite")
    assert all(np.isfinite(value).all() for value in state.values())


@pytest.fixture(scope="module")
def study(root) -> kill.Study:
    """musicHuBERT's run that was never stopped, to compare others with.

    It has several targets, mixes two data sets and looks at their validation splits.
    """
    return kill.Study(runs.MULTI, root, AT_WORK, SHORT | runs.MIXED)


@pytest.fixture(scope="module")
def hubert(study) -> Path:
    """The workdir of a complete run of musicHuBERT."""
    return study.root / "reference"


def test_a_teacher_that_does_not_fit(root, refused, hubert, tmp_path):
    other = shutil.copytree(hubert, tmp_path / "24khz")
    for about in other.glob("checkpoints/*/about/metadata"):
        about.write_text(about.read_text().replace('"sample_rate": 16000', '"sample_rate": 24000'))
        digests.write(about.parent)
    cases = {
        "none": "none holds no encoder",
        "24khz": "takes audio of 24000 Hz, but data.sample_rate is",
    }
    for name, message in cases.items():
        leaves = ITERATION_2 | {"teacher.encoder": tmp_path / name}
        workdir = tmp_path / f"run-{name}"
        assert message in refused(flags(root, workdir, leaves, runs.MUSICHUBERT))
        assert not steps_on_disk(workdir)


def test_what_is_logged_of_several_targets(hubert):
    logged = [line for line in runs.scalars(hubert) if "loss" in line][-1]
    for name in ("mel_1", "mel_2", "chroma", "onset"):
        assert 0 < logged[f"code_usage/{name}"] <= 1
        assert {f"masked_accuracy/{name}", f"majority/{name}"} <= logged.keys()
    assert logged["label_perplexity/chroma"] > 2


@pytest.mark.slow
def test_iteration_2_trains_on_a_layer_of_iteration_1(root, command, hubert, tmp_path):
    leaves = ITERATION_2 | {"teacher.encoder": hubert}
    code, output, errors = command(flags(root, tmp_path / "run", leaves, runs.MUSICHUBERT))
    assert code == 0, errors
    assert "codebook pass 6/6" in output and "step 6/6" in output


def test_a_damaged_codebook_is_told_and_left(root, refused, hubert, tmp_path):
    book = Path(shutil.copy(hubert / "codebook.npz", tmp_path))
    truncate(book)
    before = book.read_bytes()
    message = refused(flags(root, tmp_path, config=runs.MULTI))
    assert "codebook.npz is damaged" in message
    assert book.read_bytes() == before


@pytest.fixture(scope="module")
def damaged_data(root) -> tuple[Path, str]:
    """A copy of the data with one record damaged, which the run reads at step 4; its shard."""
    data = shutil.copytree(root / "data", root / "harmed/data")
    dataset = batches.open_dataset("clips", data, "train")
    samples = audio.crop_samples(runs.LEAVES["data.crop_frames"])
    stream = batches.iterate(dataset, seed=1, batch_size=8, samples=samples)
    records = [next(stream)["record"] for _ in range(5)]
    stream.close()
    record = next(r for r in records[4] if r not in np.concatenate(records[:4]))
    shard = Path(dataset.layout.shards[record * 2 // len(dataset)])
    content = bytearray(shard.read_bytes())
    begin, size = int(dataset.index.offset[record]), 2 * int(dataset.samples[record])
    content[begin : begin + size : 100] = bytes(len(range(begin, begin + size, 100)))
    shard.write_bytes(content)
    return data, shard.name


@pytest.fixture(scope="module")
def stopped(root, command, damaged_data) -> tuple[Path, str]:
    """The workdir of a run that has met the damaged record, and what it said."""
    workdir, leaves = root / "stopped", {"data.data_dir": damaged_data[0]}
    code, _, errors = command(flags(root, workdir, leaves))
    assert code == 2, errors
    return workdir, errors


def test_a_damaged_record_stops_the_run_and_is_named(damaged_data, stopped):
    workdir, errors = stopped
    assert errors.startswith("musicssl: ") and errors.count("\n") == 1
    assert f"{damaged_data[1]}, record " in errors and "checksum" in errors
    assert steps_on_disk(workdir)[-1] == 4


def test_a_damaged_record_is_skipped_and_counted(root, command, damaged_data, stopped, tmp_path):
    data, shard = damaged_data
    workdir = shutil.copytree(stopped[0], tmp_path / "run")
    leaves = {"data.data_dir": data, "data.on_damage": "skip"}
    code, _, errors = command(flags(root, workdir, leaves))
    assert code == 0, errors
    assert "skipped: " in errors and f"{shard}, record " in errors
    assert errors.count("\n") == 1
    assert runs.scalars(workdir)[-1]["damaged_records"] == 1


DAMAGED = [b"\0\0\xff\n", b"# mine\n", b'{"step": 8, "lo']  # lines of metrics.jsonl


@pytest.fixture(scope="module")
def gone_on(root, command, stopped) -> tuple[Path, str]:
    """The workdir of a run that went on to its end after all this, and what it said.

    A damaged record stopped it at step 4, where its data were mended. Its newest checkpoint was
    damaged, and in its metrics lines follow of steps that it has not kept, and of nothing.
    """
    workdir = shutil.copytree(stopped[0], root / "gone-on")
    HARM["data cut off"](workdir / "checkpoints/4")
    with (workdir / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 7, "loss": 1.0}\n' + b"".join(DAMAGED))
    code, output, errors = command(flags(root, workdir, {"checkpoint.on_damage": "older"}))
    assert code == 0, errors
    return workdir, output


def test_a_damaged_checkpoint_is_passed_over_when_asked(gone_on):
    workdir, output = gone_on
    assert f"moved to {workdir}/damaged" in output
    assert "going on from step 2 of 6" in output


def test_the_time_of_all_lives_is_told_at_the_end(gone_on):
    workdir, output = gone_on
    lives = json.loads((workdir / "goodput.json").read_text())
    assert [(life["first"], life["step"]) for life in lives] == [(0, 4), (2, 6)]
    seconds, logged = goodput.account(lives), runs.scalars(workdir)[-1]
    assert min(seconds[x] for x in ("goodput", "compile", "restore", "repeated", "down")) > 0
    assert logged["time/repeated"] > 0 and logged["time/down"] > 0
    (line,) = (line for line in output.splitlines() if line.startswith("goodput "))
    assert " in 2 lives, lost to " in line and "repeated" in line


def test_a_run_that_goes_on_ends_as_one_never_stopped(gone_on, finished):
    assert runs.differences(runs.state(gone_on[0]), runs.state(finished)) == []


def test_lines_past_the_restored_step_are_written_again(gone_on, finished):
    lines, expected = runs.scalars(gone_on[0]), runs.scalars(finished)
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line, other in zip(lines, expected, strict=True):
        assert measured(line) == measured(other)


def test_lines_that_cannot_be_read_are_set_aside_and_told(gone_on):
    workdir, output = gone_on
    assert f"{workdir}/metrics.jsonl: unreadable lines were moved to" in output
    assert (workdir / "metrics.jsonl.damaged").read_bytes() == b"".join(DAMAGED)


def measured(line: dict[str, float]) -> dict[str, float]:
    """What does not depend on the clock."""
    clock = ("time/", "audio_seconds_per_second")
    return {name: value for name, value in line.items() if not name.startswith(clock)}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_second_iteration_is_told_what_the_first_was(tmp_path, monkeypatch, elsewhere):
    """`exec_next_run`, with what it would become written down instead."""
    config = musichubert.get_config("demo")
    leaves = {"data.data_dir": "my data", "data.normalize": True, "mesh.fsdp": 1}
    leaves["probe.data_dir"] = "probes"
    config.update_from_flattened_dict(leaves)
    called = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: called.append(arguments))
    monkeypatch.setattr(distributed, "as_flags", lambda: ["--coordinator=a:1"])
    monkeypatch.chdir(tmp_path if elsewhere else runs.ROOT)
    main.exec_next_run(config, tmp_path)
    main.exec_final_probe(config, tmp_path)
    configs = f"{runs.ROOT}/configs" if elsewhere else "configs"
    assert f"--config={configs}/probe.py" in called[1]
    assert {
        f"--config={configs}/musichubert.py:demo_iter2",
        f"--config.teacher.encoder={tmp_path}",
        f"--workdir={tmp_path}-demo_iter2",
        "--config.data.data_dir=my data",
        "--config.data.normalize=True",
        "--config.probe.data_dir=probes",
        "--config.mesh.fsdp=1",
        "--coordinator=a:1",
    } <= set(called[0])


@pytest.fixture(params=["music2vec:demo", "musichubert:demo_iter2", "music2vec:crop5s"])
def own_music(request, tmp_path) -> ml_collections.ConfigDict:
    """A run with probes on a folder of one's own music, which holds nothing else."""
    family, variant = request.param.split(":")
    config = importlib.import_module(f"configs.{family}").get_config(variant)
    config.data.name, config.data.data_dir = "music_folder", str(tmp_path / "mine")
    if not config.probe.at_end:
        config.probe.every = 10
    return config


def test_probes_of_a_run_on_ones_own_music_compose_what_they_need(own_music, monkeypatch):
    needed, called = [], []
    monkeypatch.setattr(host, "require_labelled", lambda *given: needed.append(given))
    monkeypatch.setattr(os, "execv", lambda path, arguments: called.append(arguments))
    assert main.with_possible_probes(own_music) is own_music
    assert needed == [("synth_music", "data", 16_000)]
    main.exec_final_probe(own_music, Path("run"))
    # in a job of several processes it is one of its own
    assert {"--config.data_dir=data", "--processes=1"} <= set(called[0])


def test_probes_whose_data_are_away_end_a_run_that_may_be_started_again(own_music, monkeypatch):
    def away(*_: object) -> None:
        raise OSError(errno.EIO, "no answer")

    monkeypatch.setattr(host, "require_labelled", away)
    with pytest.raises(OSError, match="no answer"):
        main.with_possible_probes(own_music)


def test_probes_whose_data_cannot_be_composed_are_left_out(own_music, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise host.NotComposed("the disk is full")

    monkeypatch.setattr(host, "require_labelled", refuse)
    before = own_music.to_dict()
    without = main.with_possible_probes(own_music)
    assert capsys.readouterr().out == "this run goes on without its probes: the disk is full\n"
    assert (without.probe.every, without.probe.at_end) == (0, False)
    assert own_music.to_dict() == before
    probe = {"every": before["probe"]["every"], "at_end": before["probe"]["at_end"]}
    assert without.to_dict() | {"probe": without.probe.to_dict() | probe} == before


def ended(study: kill.Study, name: str, phase: str, number: int) -> str:
    """Start a run, end it by a signal in a phase, and return the last line that it said."""
    life = study.live(name, "cache")
    while not life.count(phase):
        assert life.process.poll() is None
        time.sleep(0.002)
    life.process.send_signal(number)
    errors = life.end()
    assert life.process.returncode == 75, errors
    return life.lines[-1]


@pytest.mark.slow
def test_music2vec_stopped_at_any_moment_ends_as_if_never_stopped(tmp_path):
    """One run, ended by Ctrl-C, then killed in training, then killed while saving."""
    runs.write_clips(tmp_path / "data")
    often = {"steps": 32, "checkpoint.every": 4, "log_every": 1}
    study = kill.Study(runs.MUSIC2VEC, tmp_path, AT_WORK, often)
    said = ended(study, "run-4", "training", signal.SIGINT)
    assert said.startswith("asked to end at step ")
    step = int(said.split()[5].rstrip(":"))
    assert steps_on_disk(tmp_path / "run-4")[-1] == step < often["steps"]
    kills, wrong = study.run(4, "cache", ["training", "saving"])
    assert not wrong and kills.total() == 2 and not kills["ended before"]


@pytest.mark.slow
def test_musichubert_stopped_at_any_moment_ends_as_if_never_stopped(study):
    """One run ended by a hang-up and then killed, both while its codebook is fitted."""
    assert ended(study, "run-3", "fitting", signal.SIGHUP).startswith("codebook pass ")
    kills, wrong = study.run(3, "cache", ["fitting"])
    assert not wrong and kills["fitting"] == 1
