"""The evaluator end to end: every task on a fabricated miniature, the command, its reports."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import tensorflow_datasets as tfds

from data_pipelines import labelled_records
from data_pipelines.build import load_builder
from musicssl import host
from musicssl.features import extract, windows
from musicssl.model.encoder import Encoder
from musicssl.probing import columns, evaluate, report, session, tasks
from musicssl.runtime import sharding
from musicssl.runtime.preemption import Preempted
from tests.support import commands, feature_sources, mir_fixtures, tiny
from tests.support.probes import config, nothing

pytestmark = pytest.mark.usefixtures("few_draws")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Builds a miniature in the published layout, once, and gives where it is."""
    root = tmp_path_factory.mktemp("data")

    @functools.cache
    def build(name: str) -> str:
        manual = tmp_path_factory.mktemp(name)
        getattr(mir_fixtures, name)(manual)
        builder = load_builder(name, "16khz", str(root))
        download = tfds.download.DownloadConfig(manual_dir=manual)
        builder.download_and_prepare(download_dir=root / "downloads", download_config=download)
        return str(root)

    return build


@pytest.fixture(scope="module")
def logmel() -> extract.FeatureSource:
    return extract.open_source("logmel")


@pytest.mark.parametrize("name", [*tasks.SUITES["mir"], *tasks.SUITES["rhythm"]])
def test_each_of_the_13_tasks_and_of_the_two_on_rhythm_runs_to_a_score(
    name: str, data_dir: Callable[[str], str], logmel: extract.FeatureSource, tmp_path: Path
) -> None:
    task = tasks.TASKS[name]
    settings = config(tmp_path, data_dir=data_dir(task.dataset), tasks=name, batch_size=4)
    given = session.Session(logmel, settings, sharding.make_mesh(), nothing)
    result = session.run_task(task, [task], given)
    json.dumps(result)
    for score, value in result["chosen"]["test"].items():
        assert np.isfinite(value["mean"]) or (task.pool, score) == (1, "f_mean")
    low, high = result["chosen"]["interval"]
    assert np.isnan([low, high]).all() or low <= high
    assert min(result["items"].values()) > 0
    if result["confusion"]:
        assert np.sum(result["confusion"]) == result["items"]["test"]
    if name == "mtg_moodtheme":  # one track of each split has no mood, one is damaged
        assert result["items"] == {"train": 4, "validation": 4, "test": 5}


@pytest.mark.parametrize("dataset", ["gtzan", "nsynth", "mtg_jamendo", "vocalset"])
def test_a_recording_is_read_once_for_all_tasks_on_it(
    dataset: str,
    data_dir: Callable[[str], str],
    logmel: extract.FeatureSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: None)
    chosen = [task for task in tasks.choose("mir,rhythm") if task.dataset == dataset]
    assert len(chosen) > 1
    settings, reads = config(tmp_path, data_dir=data_dir(dataset)), []
    mesh = sharding.make_mesh()
    given = session.Session(logmel, settings, mesh, lambda: reads.append(1))
    for task in chosen:
        session.run_task(task, chosen, given)
    count, recordings = len(reads), set()
    for split in {task.split(name) for task in chosen for name in tasks.SPLITS}:
        data = host.open_labelled(dataset, settings.data_dir, split, 16_000, 0, read_labels=False)
        recordings |= set(zip(data.sums.tolist(), data.lengths.tolist(), strict=True))
    assert count == len(recordings)

    # What was heard for another task is what is heard for this one alone.
    alone = given._replace(config=config(tmp_path / "alone", data_dir=settings.data_dir))
    for name in tasks.SPLITS:
        mine, others = (session.prepare(chosen[-1], name, set(), x)[0] for x in (alone, given))
        np.testing.assert_array_equal(others.features, mine.features)
    assert len(reads) > count


def test_windows_are_standardised_by_themselves_where_the_task_says_so(
    synth_dir: str, logmel: extract.FeatureSource, tmp_path: Path
) -> None:
    source = logmel._replace(normalize=True)
    settings = config(tmp_path, data_dir=synth_dir)
    given = session.Session(source, settings, sharding.make_mesh(), nothing)
    data = host.open_labelled("synth_music", synth_dir, "test", 16_000, 0)
    sound = data.read(1).astype(np.float32) / 32768
    window = sound[80_000:]  # the remainder of 6 s
    found = []
    for alone, over in ((False, sound), (True, window)):
        task = dataclasses.replace(tasks.TASKS["synth_key"], standardised_alone=alone)
        prepared, _ = session.prepare(task, "test", set(), given)
        found.append(prepared.features[0, 3])  # the second window of record 1
        x = (window - over.mean()) / np.sqrt(over.var() + 1e-7)
        wanted = np.asarray(source.apply({}, x[None])[0][0].mean(0))
        np.testing.assert_allclose(found[-1], wanted, rtol=2e-3, atol=2e-3)
    assert np.abs(found[0].astype("f4") - found[1]).max() > 0.02


def test_further_questions_are_asked_of_the_same_features(
    synth_dir: str, logmel: extract.FeatureSource, tmp_path: Path
) -> None:
    settings = config(tmp_path, data_dir=synth_dir, kind="linear", standardise=True)
    mesh, asked = sharding.make_mesh(), ("gain:0", "noise:-30", "speed:1.25")
    given = session.Session(logmel, settings, mesh, nothing, evaluate.ALSO, asked)
    key, beat = tasks.TASKS["synth_key"], tasks.TASKS["synth_beat"]
    result = session.run_task(key, [key, beat], given)
    assert result["few_shot"]["number"] == 8 and result["knn"]["source"] == "0"
    assert [layer["source"] for layer in result["geometry"]] == ["0"]
    same, noisy, fast = result["deformed"]
    assert [x["deformation"] for x in result["deformed"]] == list(asked)
    score = result["chosen"]["test"]["weighted"]["mean"]
    assert same["mean"] == score and (same["drop"], same["drop_interval"]) == (0, [0, 0])
    assert same["p"] == 1 and noisy["mean"] + noisy["drop"] == pytest.approx(score)
    assert fast["drop_interval"] is not None  # the same clips, though shorter
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.json").write_text(json.dumps(
        {"encoder": "logmel", "features": "log-mel", "config": {}, "tasks": {"synth_key": result}}
    ))  # fmt: skip
    table = report.write(tmp_path / "out")
    assert "| weighted | gain:0 |" in table and "| +0.0 (+0.0 to +0.0) | 1.000 |" in table
    assert "| isotropy |" in table and "few items of each class" in table

    # Beats move along with the speed, and are no more where they were.
    plain, _ = session.prepare(beat, "test", set(), given)
    moved, _ = session.prepare(beat, "test", set(), given, "speed:1.25")
    for before, after in zip(plain.labels.references, moved.labels.references, strict=True):
        np.testing.assert_allclose(after, before / 1.25, rtol=1e-6)
    assert len(moved.rows.record) == pytest.approx(len(plain.rows.record) / 1.25, rel=0.02)
    part = tasks.TASKS["synth_chord"]
    result = session.run_task(part, [part], given._replace(also=(), deform=("speed:1.25",)))
    assert result["deformed"][0]["p"] is None and "knn" not in result  # other half seconds


def test_the_command_writes_results_table_and_pictures(synth_dir: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        "--config=configs/probe.py:quick",
        "--config.encoder=logmel",
        "--config.tasks=synth_key,synth_polyphony",
        f"--config.data_dir={synth_dir}",
        f"--config.cache={tmp_path / 'features'}",
        f"--config.results={out}",
        "--config.epochs=2",
        "--config.kind=linear",
    ]
    code, output, errors = command(arguments)
    assert code == 0, errors[-3000:]
    assert "| synth_music, key | weighted |" in output
    assert output.strip() == (out / "results.md").read_text().strip()
    held = json.loads((out / "results.json").read_text())
    assert list(held["tasks"]) == ["synth_key", "synth_polyphony"]
    assert held["run"] is None  # nobody has trained a log-mel spectrogram
    for name in ("layers", "synth_key-layers", "synth_key-confusion", "synth_polyphony-confusion"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    code, output, errors = command(
        ["--compare", str(out), str(out), f"--config.results={tmp_path / 'both'}"]
    )
    assert code == 0, errors[-3000:]
    assert "| logmel | logmel | chance |" in output
    assert "), p 1.000 |" in output and "bootstrap test against logmel" in output
    assert (tmp_path / "both" / "compare.png").exists()


def test_a_workdir_says_which_run_was_evaluated(tmp_path: Path) -> None:
    saved = tmp_path / "checkpoints"
    for step, seed in ((20, 3), (40, 4)):
        about = saved / str(step) / "about"
        about.mkdir(parents=True)
        (about / "metadata").write_text(json.dumps({"config": {"seed": seed, "mask": {"span": 5}}}))
    assert session._trained_by(str(tmp_path), None) == {
        "config": {"seed": 4, "mask.span": 5},
        "step": 40,
    }
    for other in ("logmel", f"random:{tmp_path}", str(saved)):
        assert session._trained_by(other, None) is None


def command(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of python -m musicssl.probe."""
    process = commands.Process(commands.module, "musicssl.probe", *arguments)
    said = process.communicate()
    return process.returncode, *said


def test_results_go_beside_others_whatever_an_encoder_s_path_is(tmp_path: Path) -> None:
    names = {
        "runs/2026-01-05T10:30/model": "model",
        "random:runs/10:30/model": "random-model",
        "logmel": "logmel",
        "hf:m-a-p/MERT-v0@main": "MERT-v0@main",
        "python:encoders/mine.py:Mine": "Mine",
        "python:package.module:encode": "encode",
        "features:stored/mine": "mine",
    }
    for encoder, name in names.items():
        assert session._results_dir(config(tmp_path, encoder=encoder)) == Path("results", name)
        results = {"encoder": encoder}
        assert columns.short_name(results) == name.replace("random-", "random:")


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"encoder": ""}, "config.encoder is empty"),
        ({"kind": "forest"}, "use 'mlp', 'linear' or 'ridge'"),
        ({"tasks": "chords"}, "there is no 'chords'"),
        ({"encoder": "/no/such/run"}, "holds no encoder"),
        ({"tasks": "gtzan_genre"}, "data_pipelines.build gtzan"),
        ({"encoder": "python:no.py:Mine"}, "there is no file .*no.py"),
        ({"encoder": "features:no"}, "features:no has no features.json"),
        ({"encoder": "random:python:m.py:Mine"}, "drawn for python:m.py:Mine: .* name a run"),
        ({"beside": "random,lgmel"}, "'lgmel' is neither a path nor one of random, logmel"),
        ({"seeds": ()}, "config.seeds is empty: it must have a value"),
        ({"windows": 0}, "config.windows is 0: use 1 or more"),
        ({"precision": "half"}, "use 'float32' or 'bfloat16'"),
        ({"also": "knn,trees"}, "config.also: there is no 'trees': use some of"),
        ({"deform": "echo:3"}, "config.deform is not possible: there is no deformation 'echo:3'"),
    ],
)
def test_what_cannot_be_done_is_said(
    leaves: dict, message: str, synth_dir: str, tmp_path: Path
) -> None:
    settings = config(
        tmp_path, tasks="synth_key", data_dir=synth_dir, results=str(tmp_path / "out")
    )
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        session.run(_with(settings, leaves))


def test_probes_of_a_training_run_are_looked_at_before_it(synth_dir: str) -> None:
    run = tiny.config({"probe.tasks": "synth_key"})
    run.data.data_dir = synth_dir
    assert session.of_training(run).data_dir == synth_dir
    session.check_settings(session.of_training(run), 3, 16_000)
    run.probe.tasks = "synth_key,gtzan_genre"
    with pytest.raises(FileNotFoundError, match=r"data_pipelines.build gtzan"):
        session.check_settings(session.of_training(run), 3, 16_000)
    run.data.data_dir = str(Path(synth_dir) / "none")
    assert session.of_training(run).data_dir == run.data.data_dir  # gtzan cannot be composed
    run.probe.tasks = "synth_key"
    assert session.of_training(run).data_dir == "data"
    run.probe.data_dir = synth_dir
    assert session.of_training(run).data_dir == synth_dir
    run.probe.layers = "0,7"
    with pytest.raises(ValueError, match="there is no '7': use some of 0,1,2,concat"):
        session.check_settings(session.of_training(run), 3, 16_000)
    assert evaluate.chosen_sources(1, "6,sum", "linear") == ["0"]  # of a baseline beside an encoder


def _with(settings, leaves: dict):
    for name, value in leaves.items():
        settings[name] = value
    return settings


def test_an_encoder_in_training_is_scored(synth_dir: str) -> None:
    leaves = {"probe.tasks": "synth_key,synth_instrument", "probe.limit": 3}
    run = tiny.config(leaves)
    run.data.data_dir = synth_dir
    encoder = Encoder(**run.encoder)
    params = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1, 400)))["params"]
    polls = []
    mesh = sharding.make_mesh()
    scores = session.quick(run, params, mesh, 100, lambda: polls.append(1))
    assert set(scores) == {"probe/synth_key", "probe/synth_instrument"}
    assert all(0 <= value <= 1 for value in scores.values())
    # each record of three splits; a block of each split and each source of the two tasks
    assert len(polls) == 3 * 3 + 2 * (3 + encoder.layers + 2)

    def asked() -> None:
        raise Preempted

    with pytest.raises(Preempted):
        session.quick(run, params, mesh, 100, asked)


def test_an_encoder_at_24_khz_hears_resampled_audio(
    synth_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    of = feature_sources.source()._replace(sample_rate=24_000)
    session._note_once.cache_clear()  # in this process, another test may have caused the note
    settings = config(tmp_path, data_dir=synth_dir, limit=2)
    given = session.Session(of, settings, sharding.make_mesh(), nothing)
    prepared, _ = session.prepare(tasks.TASKS["synth_pitch"], "validation", set(), given)
    assert "is resampled from 16000 to 24000 Hz" in capsys.readouterr().err
    # 5 s windows of 374 frames at 75 Hz, 37 or 38 in a row; the rest of 6 s is one of 74
    assert prepared.rows.record.tolist() == [0] * 12 + [1] * 12
    np.testing.assert_allclose(np.diff(prepared.rows.begin[:10]), 0.5, atol=0.01)
    assert prepared.features.shape == (of.layers, 24, of.width)
    heard, stored = (
        labelled_records.open_labelled("synth_music", synth_dir, "validation", rate, 2).read(0)
        for rate in (24_000, 16_000)
    )
    wanted = scipy.signal.resample_poly(stored.astype(float), 3, 2)
    assert len(heard) == len(wanted) == 6 * 24_000
    assert np.corrcoef(heard, wanted)[0, 1] > 0.999


def test_results_of_another_encoder_are_kept_and_told_before_work(
    synth_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of a branch on the Hub that has moved."""
    out = tmp_path / "out"
    out.mkdir()
    earlier = {"digest": "old", "features": "hubert of hf:a/b@old", "tasks": {"synth_key": {}}}
    (out / "results.json").write_text(json.dumps(earlier))
    monkeypatch.setattr(session, "run_task", lambda *_: pytest.fail("work was done"))
    settings = config(tmp_path, tasks="synth_key", data_dir=synth_dir, results=str(out))
    with pytest.raises(ValueError, match=r"hf:a/b@old, and this is log-mel\): set config.results"):
        session.run(settings)
    assert json.loads((out / "results.json").read_text()) == earlier


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ("mfcc,python:no.py:Mine", "there is no file .*no.py"),
        ("hf:a/b/c", "hf:a/b/c is not a name on the Hub"),
        ("random", "drawn for logmel: instead of random, name a run"),
    ],
)
def test_encoders_beside_are_opened_before_the_first_is_evaluated(
    beside: str, message: str, synth_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "run_task", lambda *_: pytest.fail("work was done"))
    settings = config(
        tmp_path,
        tasks="synth_key",
        data_dir=synth_dir,
        results=str(tmp_path / "out"),
        beside=beside,
    )
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        session.run(settings)


def test_beats_are_not_asked_of_few_frames(logmel: extract.FeatureSource, tmp_path: Path) -> None:
    slow = logmel._replace(frames=windows.Frames(8000, 8000))
    with pytest.raises(ValueError, match=r"synth_beat has a row for every frame .* has 2.00"):
        session._check_frames(tasks.choose("synth_key,synth_beat"), slow, config(tmp_path))
    session._check_frames(tasks.choose("synth_key,synth_pitch"), slow, config(tmp_path))
