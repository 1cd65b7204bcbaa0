"""What an evaluation takes: counts against the builders, the published windows and real files."""

import functools
import importlib
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import music2vec
from configs import probe as probe_config
from musicssl.features import extract, windows
from musicssl.model.encoder import make_encoder
from musicssl.planning import evaluation, rates, report, topology
from musicssl.probing.tasks import SUITES, TASKS
from musicssl.runtime import sharding
from musicssl.training import flops
from tests.support import feature_sources

MEASURED = rates.Rates("a machine", [rates.Measured(30.0, 2.0, None)], 1e9, 5e8, 0.01)


@functools.cache
def full_size() -> tuple[extract.FeatureSource, object]:
    """Shapes of an encoder of 95M parameters, without values, and its configuration."""
    config = music2vec.get_config("vanilla")
    encoder = make_encoder(config)
    shapes = jax.eval_shape(
        lambda key: encoder.init(key, jnp.zeros((1, 400)))["params"], jax.random.key(0)
    )
    apply = functools.partial(extract.hidden_states, encoder)
    return extract.FeatureSource("95M", "95M", 13, 768, 16_000, True, shapes, apply), config.encoder


def planned(tasks: str, **leaves) -> dict:
    config = probe_config.get_config()
    config.update({"encoder": "any"} | leaves)
    chosen = [TASKS[name] for name in tasks.split(",")]
    sheet = {"h100:1": topology.data_sheet("h100:1")}
    return evaluation.plan(full_size()[0], chosen, config, sheet, MEASURED)


@pytest.mark.parametrize(
    "name", ["magnatagatune", "giantsteps_key", "gtzan", "emomusic", "nsynth", "mtg_jamendo"]
)
def test_audio_is_what_the_builders_state(name: str) -> None:
    builder = importlib.import_module(f"data_pipelines.{name}.{name}_dataset_builder").Builder
    audio = evaluation._AUDIO[name]
    assert audio.seconds == builder.TRACK_SECONDS
    if name != "mtg_jamendo":  # its tracks are those of any subset: all of the largest, and more
        assert list(audio.records) == list(builder.EXPECTED_SIZES.values())
    else:
        assert sum(audio.records) == 55_525 and audio.records[0] > 32_572


def test_embedded_audio_is_what_is_composed() -> None:
    from data_pipelines.composer import polyphony
    from data_pipelines.synth_music.synth_music_dataset_builder import SynthMusicConfig
    from data_pipelines.synth_polyphony.synth_polyphony_dataset_builder import SynthPolyphonyConfig

    for name, size in (
        ("synth_music", SynthMusicConfig),
        ("synth_polyphony", SynthPolyphonyConfig),
    ):
        made = size(name="x")
        records = (made.train, made.validation, made.test)
        assert evaluation._AUDIO[name].records == records
    assert evaluation._AUDIO["synth_music"].seconds == SynthMusicConfig(name="x").seconds
    assert evaluation._AUDIO["synth_polyphony"].seconds == polyphony.SECONDS


@pytest.mark.parametrize(
    "name, published, apart",
    [
        ("mtg_instrument", (118_886, 42_993), 0.1),
        ("mtg_moodtheme", (77_984, 28_504), 0.15),
        ("mtg_genre", (280_744, 90_840), 0.05),
        ("mtg_top50", (277_081, 89_485), 0.05),
    ],
)
def test_windows_of_tracks_are_about_those_of_the_published_durations(
    name: str, published: tuple[int, int], apart: float
) -> None:
    """Counted from the DURATION column of mtg-jamendo-dataset's split 0, rests of a second kept.

    A plan has the mean length of all tracks; those of the smaller subsets are shorter.
    """
    work = evaluation.grid_work(full_size()[0], TASKS[name], probe_config.get_config())
    assert work.train == pytest.approx(published[0], rel=apart)
    assert work.validation == pytest.approx(published[1], rel=apart)


def test_updates_are_those_of_the_protocol() -> None:
    """As musicssl/probing/protocol.md has them, from MARBLE's sizes and batches of 64 files."""
    updates = {"emomusic": 8, "mtg_instrument": 225, "mtg_moodtheme": 156, "mtg_genre": 509,
               "mtg_top50": 503, "gtzan_genre": 7, "gtzan_beat": 7}  # fmt: skip
    source = full_size()[0]
    for name, count in updates.items():
        work = evaluation.grid_work(source, TASKS[name], probe_config.get_config())
        assert work.updates == count, name
        assert (work.singles, work.mixed, work.models, work.probes) == (13, 12, 18, 252)
    beat = evaluation.grid_work(source, TASKS["gtzan_beat"], probe_config.get_config())
    assert beat.train == 443 * 500 and beat.clips == 197  # crops of 10 s


def test_operations_are_those_counted_from_the_shapes() -> None:
    source, encoder = full_size()
    for seconds in (4, 30):
        counted = sum(flops.forward(encoder, (seconds * 16_000 - 400) // 320 + 1).values())
        assert evaluation.forward(source, seconds * 16_000) == pytest.approx(counted, rel=0.03)
    (task,) = planned("gtzan_genre")["tasks"]
    assert task["flops"] == pytest.approx(930 * counted, rel=0.03)
    assert task["windows"] == 930 and task["hours"] == pytest.approx(7.75)


def test_the_features_on_disk_are_as_large_as_planned(tmp_path: Path) -> None:
    source = feature_sources.source()
    task = TASKS["synth_pitch"]
    cut = windows.cut(np.full(2, 480_000), task.window, 16_000)

    def read(record: int) -> np.ndarray:
        return np.full(480_000, 9, np.int16)

    for split in range(3):
        mesh = sharding.make_mesh()
        extract.extract(source, cut, read, [task.pool], tmp_path, f"{split}", mesh, 12)
    written = [np.load(file, mmap_mode="r").nbytes for file in tmp_path.rglob("*.npy")]
    config = probe_config.get_config()
    config.limit = 2
    plan = evaluation.plan(source, [task], config, {}, MEASURED)
    assert len(written) == 3 and plan["tasks"][0]["cache_bytes"] == sum(written)


def test_audio_that_tasks_share_counts_once() -> None:
    plan = planned("gtzan_genre,gtzan_beat,nsynth_pitch,nsynth_instrument")
    genre, beat, pitch, instrument = plan["tasks"]
    assert [x["shares"] for x in plan["tasks"]] == ["", "gtzan_genre", "", "nsynth_pitch"]
    assert beat["flops"] is None and beat["here"]["extraction"] is None
    assert instrument["cache_bytes"] == 0  # the same file as pitch's
    assert pitch["cache_bytes"] == 305_979 * 13 * 768 * 2
    assert beat["cache_bytes"] == 930 * 1499 * 13 * 768 * 2
    table = report.evaluation(plan)
    total = next(line for line in table.splitlines() if line.startswith("| all |"))
    assert f"| {genre['hours'] + pitch['hours']:,.1f} |" in total and "| 1,008 |" in total
    assert table.count("with gtzan_genre") == 3  # operations, here, h100


def test_times_are_those_of_the_rates_and_of_the_data_sheet() -> None:
    (task,) = planned("gtzan_genre")["tasks"]
    assert task["here"]["extraction"] == pytest.approx(930 * 2.0)
    row = 2 * 512 * (768 + 10)
    rows = 18 * (3 * 443 + 197)
    for epochs, seconds in zip((21, 100), task["here"]["grid"], strict=True):
        mixed = epochs * rows * (row + 2 * 12 * 768) / 5e8
        assert seconds == pytest.approx(13 * epochs * rows * row / 1e9 + mixed)
    gpu = task["devices"]["h100:1"]
    assert gpu["extraction"] == pytest.approx(task["flops"] / (989e12 / 2))  # TF32
    moved = 21 * (7 * 18 * 512 * 778 * 4 * 6 + 640 * 768 * 2)  # a layer; and the sum, of twelve
    moved = 13 * moved + moved + 21 * 640 * 768 * 2 * 11
    assert gpu["grid"][0] == pytest.approx(moved / 3352.32e9)
    many = evaluation.plan(
        full_size()[0], [TASKS["gtzan_genre"]], probe_config.get_config(),
        {"h100:2x8": topology.data_sheet("h100:2x8")}, MEASURED,
    )  # fmt: skip
    assert many["tasks"][0]["devices"]["h100:2x8"]["extraction"] == pytest.approx(
        gpu["extraction"] / 16
    )


def test_what_jax_does_not_compute_has_no_operations() -> None:
    silent = full_size()[0]._replace(digest="silent", apply=lambda params, x: [], params={})
    plan = evaluation.plan(
        silent, [TASKS["gtzan_genre"]], probe_config.get_config(),
        {"v5e:2x2": topology.data_sheet("v5e:2x2")}, MEASURED,
    )  # fmt: skip
    assert plan["tasks"][0]["flops"] is None
    assert "| unknown |" in report.evaluation(plan)


def test_every_task_has_its_audio() -> None:
    for name in (x for suite in SUITES.values() for x in suite):
        assert sum(evaluation.heard(TASKS[name]).records) > 0
    assert evaluation.heard(TASKS["gtzan_genre"], 100).records == (100, 100, 100)


def test_a_machine_without_a_data_sheet_is_refused() -> None:
    for spec in ("here", "cpu:8"):
        with pytest.raises(ValueError, match="this machine is measured; name a TPU or GPU"):
            topology.data_sheet(spec)
    with pytest.raises(ValueError, match="h9:1 is not known"):
        topology.data_sheet("h9:1")
    v5e = topology.data_sheet("v5e:4x4@2")
    assert (v5e.devices, v5e.peak, v5e.bandwidth) == (32, 197e12, 819e9)
    with pytest.raises(ValueError, match=r"give --config=configs/probe\.py"):
        evaluation.run(types.SimpleNamespace(get=lambda name: None), [])


@pytest.mark.parametrize(
    "seconds, text", [(0.041, "0.041 s"), (60, "60 s"), (600, "10 min"), (36_000, "10.0 h")]
)
def test_times_are_spelt_in_a_unit_that_suits_them(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text
