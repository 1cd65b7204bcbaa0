"""The main command: what it writes, what it refuses, and what it leaves alone."""

import functools
import hashlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from data_pipelines import batches
from musicssl import checkpoint, digests
from tests import commands, runs
from tests.faults import kill

SHORT = {"steps": 6, "checkpoint.every": 2, "log_every": 2}
AT_WORK = functools.partial(commands.start, pause=0.01)
ITERATION_2 = {"teacher.feature": "layer", "teacher.layer": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("main")
    runs.write_clips(root / "data")
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
    """The workdir of a complete run of music2vec."""
    code, _, errors = command(flags(root, root / "finished"))
    assert code == 0, errors
    return root / "finished"


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


def test_lines_past_the_restored_step_are_written_again(root, command, workdir):
    """From step 4: lines of steps 5 and later, and half a line, are of a run that died."""
    before = runs.scalars(workdir)
    shutil.rmtree(workdir / "checkpoints/6")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    code, output, errors = command(flags(root, workdir))
    assert code == 0, errors
    assert "going on from step 4 of 6" in output
    after = runs.scalars(workdir)
    assert [line["step"] for line in after] == [2, 4, 6]
    for line, again in zip(before, after, strict=True):
        assert measured(line) == measured(again)


def measured(line: dict[str, float]) -> dict[str, float]:
    """What does not depend on the clock."""
    clock = ("time/", "audio_seconds_per_second")
    return {name: value for name, value in line.items() if not name.startswith(clock)}


def test_a_complete_run_says_so(root, command, finished):
    before = contents(finished / "checkpoints")
    code, output, _ = command(flags(root, finished))
    assert code == 0 and "complete: step 6 of 6 is in" in output
    assert contents(finished / "checkpoints") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/music2vec.py:nope"], "no variant 'nope' in configs/music2vec.py"),
        (["--config=configs/nope.py"], "No such file or directory: 'configs/nope.py'"),
        ([], "--config must have a value"),
        (["--config=configs/music2vec.py:demo", "more"], "unexpected arguments ['more']"),
        (["--config=configs/music2vec.py:demo", "--nothing"], "flag 'nothing'"),
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
            "--coordinator needs --processes and --process",
        ),
    ],
)
def test_wrong_flags(refused, arguments, message):
    assert message in refused(arguments)


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"data.name": "songs"}, "run python -m data_pipelines.build songs --data_dir="),
        ({"batch_size": 6, "accumulate": 4}, "choose a multiple of 4"),
        ({"mesh.fsdp": 3}, "mesh.fsdp is 3, but there are 1 devices"),
        ({"data.crop_frames": 400}, "lower data.crop_frames to "),
        ({"data.sample_rate": 24_000}, "data.sample_rate is 24000 Hz and"),
        ({"precision": "float99"}, "precision is 'float99'"),
        ({"probe.every": 5, "probe.tasks": "gtzan_beat"}, "data_pipelines.build gtzan "),
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
    assert "config.json is not of a run" in refused(flags(root, tmp_path))
    assert contents(tmp_path) == before


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


def test_a_damaged_checkpoint_is_passed_over_when_asked(root, command, workdir, finished):
    HARM["data cut off"](workdir / "checkpoints/6")
    code, output, errors = command(flags(root, workdir, {"checkpoint.on_damage": "older"}))
    assert code == 0, errors
    assert f"moved to {workdir}/damaged" in output
    assert "going on from step 4 of 6" in output
    assert runs.differences(runs.state(workdir), runs.state(finished)) == []


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
def hubert(root, command) -> Path:
    """The workdir of a complete run of musicHuBERT."""
    code, output, errors = command(flags(root, root / "hubert", config=runs.MUSICHUBERT))
    assert code == 0, errors
    assert "codebook pass 6/6" in output
    return root / "hubert"


def test_a_teacher_that_does_not_fit(root, refused, hubert, tmp_path):
    other = shutil.copytree(hubert, tmp_path / "24khz")
    for about in other.glob("checkpoints/*/about/metadata"):
        about.write_text(about.read_text().replace('"sample_rate": 16000', '"sample_rate": 24000'))
        digests.write(about.parent)
    cases = [
        ({}, "give --config.teacher.encoder=DIR"),
        ({"teacher.encoder": tmp_path / "none"}, f"{tmp_path}/none holds no encoder"),
        ({"teacher.encoder": hubert, "teacher.layer": 4}, f"{hubert} has layers 0 to 1"),
        ({"teacher.encoder": other}, "hears 24000 Hz and data.sample_rate is 16000"),
        ({"teacher.feature": "chroma"}, "teacher.feature is 'chroma'"),
    ]
    for number, (leaves, message) in enumerate(cases):
        workdir = tmp_path / f"run-{number}"
        arguments = flags(root, workdir, ITERATION_2 | leaves, runs.MUSICHUBERT)
        assert message in refused(arguments)
        assert not checkpoint.steps_on_disk(workdir)


def test_iteration_2_trains_on_a_layer_of_iteration_1(root, command, refused, hubert, tmp_path):
    leaves = ITERATION_2 | {"teacher.encoder": hubert}
    code, output, errors = command(flags(root, tmp_path / "run", leaves, runs.MUSICHUBERT))
    assert code == 0, errors
    assert "codebook pass" in output and "step 6/6" in output


def test_a_codebook_that_does_not_fit(root, refused, hubert, tmp_path):
    """Without checkpoints, where the configuration is not looked at."""
    cases = [
        ({"teacher.clusters": 9}, None, "has 8 clusters and the config asks for 9"),
        ({"teacher.ceps": 20}, None, "is a codebook of"),
        ({}, truncate, "codebook.npz is damaged"),
    ]
    for number, (leaves, harm, message) in enumerate(cases):
        workdir = tmp_path / f"run-{number}"
        workdir.mkdir()
        book = Path(shutil.copy(hubert / "codebook.npz", workdir))
        if harm:
            harm(book)
        before = book.read_bytes()
        assert message in refused(flags(root, workdir, leaves, runs.MUSICHUBERT))
        assert book.read_bytes() == before


def test_fewer_frames_than_clusters(root, refused, tmp_path):
    leaves = {"teacher.clusters": 480, "teacher.batches": 1}
    message = refused(flags(root, tmp_path / "run", leaves, runs.MUSICHUBERT))
    assert "256 frames, fewer than teacher.clusters = 480" in message


@pytest.fixture
def damaged_data(root, tmp_path) -> tuple[Path, str]:
    """A copy of the data with one record damaged, which the run reads at step 2; its shard."""
    data = shutil.copytree(root / "data", tmp_path / "harmed/data")
    dataset = batches.open_dataset("clips", data, "train")
    stream = batches.iterate(dataset, seed=1, batch_size=8, samples=10_320)
    records = [next(stream)["record"] for _ in range(6)]
    stream.close()
    record = next(r for r in records[2] if r not in np.concatenate(records[:2]))
    shard = Path(dataset.layout.shards[record * 2 // len(dataset)])
    content = bytearray(shard.read_bytes())
    begin, size = int(dataset.index.offset[record]), 2 * int(dataset.samples[record])
    content[begin : begin + size : 100] = bytes(len(range(begin, begin + size, 100)))
    shard.write_bytes(content)
    return data, shard.name


def test_a_damaged_record_stops_the_run_and_is_named(
    root, command, damaged_data, finished, tmp_path
):
    data, shard = damaged_data
    leaves = {"data.data_dir": data}
    code, _, errors = command(flags(root, tmp_path / "run", leaves))
    assert code == 2, errors
    assert errors.startswith("musicssl: ") and errors.count("\n") == 1
    assert f"{shard}, record " in errors and "checksum" in errors
    assert checkpoint.steps_on_disk(tmp_path / "run")[-1] == 2
    code, _, errors = command(flags(root, tmp_path / "run"))  # the data set mended
    assert code == 0, errors
    assert runs.differences(runs.state(tmp_path / "run"), runs.state(finished)) == []


def test_a_damaged_record_is_skipped_and_counted(root, command, damaged_data, tmp_path):
    data, shard = damaged_data
    leaves = {"data.data_dir": data, "data.on_damage": "skip"}
    code, _, errors = command(flags(root, tmp_path / "run", leaves))
    assert code == 0, errors
    assert "skipped: " in errors and f"{shard}, record " in errors
    assert errors.count("\n") == 1
    assert runs.scalars(tmp_path / "run")[-1]["damaged_records"] == 1


def test_the_second_iteration_is_told_what_the_first_was(root, tmp_path, monkeypatch):
    """`go_on`, with what it would become written down instead."""
    from configs import musichubert
    from musicssl import distributed, main

    config = musichubert.get_config("demo")
    leaves = {"data.data_dir": "my data", "data.normalize": True, "mesh.fsdp": 1}
    config.update_from_flattened_dict(leaves)
    called = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: called.append(arguments))
    monkeypatch.setattr(distributed, "as_flags", lambda: ["--coordinator=a:1"])
    main.go_on(config, tmp_path)
    assert {
        "--config=configs/musichubert.py:demo_iter2",
        f"--config.teacher.encoder={tmp_path}",
        f"--workdir={tmp_path}-demo_iter2",
        "--config.data.data_dir=my data",
        "--config.data.normalize=True",
        "--config.mesh.fsdp=1",
        "--coordinator=a:1",
    } <= set(called[0])


def ended(study: kill.Study, name: str, phase: str) -> str:
    """Start a run, end it by SIGTERM in a phase, and return the last line that it said."""
    life = study.live(name, "cache")
    while not life.count(phase):
        assert life.process.poll() is None
        time.sleep(0.001)
    life.process.send_signal(signal.SIGTERM)
    errors = life.end()
    assert life.process.returncode == 75, errors
    return life.lines[-1]


def music2vec_stopped(root: Path) -> None:
    """One run killed while saving, one ended by SIGTERM and then killed."""
    study = kill.Study(runs.MUSIC2VEC, root, AT_WORK)
    kills, wrong = study.run(1, "cache", ["saving"])
    assert not wrong and kills.total() == 1 > kills["ended before"]
    said = ended(study, "run-2", "training")
    assert said.startswith("asked to end at step ")
    step = int(said.split()[5].rstrip(":"))
    assert checkpoint.steps_on_disk(root / "run-2")[-1] == step < kill.LEAVES["steps"]
    _, wrong = study.run(2, "cache", ["training"])
    assert set(wrong) <= {"metrics.jsonl"}  # the mean of the steps that were left to log


def musichubert_stopped(root: Path) -> None:
    """One run ended by SIGTERM and then killed, both while its codebook is fitted."""
    study = kill.Study(runs.MUSICHUBERT, root, AT_WORK)
    assert ended(study, "run-3", "fitting").startswith("codebook pass ")
    kills, wrong = study.run(3, "cache", ["fitting"])
    assert not wrong and kills["fitting"] == 1


def test_runs_stopped_at_any_moment_end_as_those_never_stopped(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        tests = [
            pool.submit(music2vec_stopped, tmp_path / "music2vec"),
            pool.submit(musichubert_stopped, tmp_path / "musichubert"),
        ]
        for test in tests:
            test.result()
