"""The benchmark command: every row on a tiny model, with the counts it is judged by."""

import json

import jax
import pytest

from configs import musichubert
from musicssl import audio
from musicssl.planning import benchmark
from musicssl.runtime import sharding
from musicssl.training import flops, step
from tests.support import tiny

PARTS = ["step", "stem", "positional", "transformer", "head", "optimizer"]


def rows(config, only: list[str]) -> dict[str, benchmark.TimedRow]:
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    here = benchmark.Machine(mesh, 1e12, 1e9, "a stated rate", 0.0)
    return {row.name: row for row in benchmark.measured(config, here, only)}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["data2vec", "data2vec2", "hubert"])
def test_each_part_of_a_step_has_its_operations(method):
    config, only = tiny.config({"batch_size": 4}), ["step", "teacher", "optimizer"]
    if method == "data2vec2":
        config, only = tiny.copies_config({"batch_size": 4}), PARTS
    if method == "hubert":
        config, only = musichubert.get_config("demo_multi"), [*PARTS, "labels"]
        leaves = tiny.LEAVES.items()
        shared = {
            name: value for name, value in leaves if name.split(".")[0] in ("data", "encoder")
        }
        shared |= {"encoder.pos_conv_depth": 0, "batch_size": 4, "mask.equal_counts": 4}
        config.update_from_flattened_dict(shared)
    by_name = rows(config, only)
    assert set(by_name) == set(only)
    parts = flops.train_parts(config)
    counts = parts | {"transformer": parts["attention"] + parts["ffn"]}
    for name, row in by_name.items():
        assert row.seconds > 0
        if name in counts:
            assert row.figure * row.seconds * 1e9 == pytest.approx(counts[name])
            assert (row.unit, row.limit) == ("GFLOP/s", 1e3)
    whole = by_name["step"].figure * by_name["step"].seconds * 1e9
    assert whole == pytest.approx(flops.train_step(config)) == pytest.approx(sum(parts.values()))
    state = step.state_shapes(config)
    moved = 7 * 4 * sum(x.size for x in jax.tree.leaves(state.params))
    moved += 2 * 4 * sum(x.size for x in jax.tree.leaves(state.teacher))
    assert by_name["optimizer"].figure * by_name["optimizer"].seconds * 1e9 == pytest.approx(moved)
    assert by_name["optimizer"].unit == "GB/s"


def test_what_surrounds_the_step(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "TASK", (43, 17, 10))
    monkeypatch.setattr(benchmark, "FRAMES", 1000)
    config = tiny.config({"data.data_dir": str(tmp_path), "batch_size": 4})
    by_name = rows(config, ["input", "extraction", "probes", "kmeans"])
    assert list(by_name) == ["extraction", "probes", "kmeans"]
    assert "input: not run, " in capsys.readouterr().err
    assert all(row.seconds > 0 and row.figure > 0 and row.limit > 0 for row in by_name.values())


def test_a_ruler_is_read_as_often_as_what_stands_beside_it(monkeypatch):
    slow, clock, calls = [4.0, 4.0, 4.0, 8.0], [0.0], []

    def work(name: str, seconds: float) -> None:
        calls.append(name)
        clock[0] += seconds * slow[min(calls.count(name), len(slow)) - 1]

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    ruler = benchmark.Ruler(lambda: work("ruler", 0.5), 100.0)
    seconds, rate = benchmark.beside(lambda: work("row", 1.0), ruler, 1e9, 10.0)
    assert calls == ["row", "ruler"] * 4  # the first of each compiles and is not counted
    assert (seconds, rate) == (4.0, 50.0)
    assert benchmark.beside(lambda: work("row", 1.0), None, 1e9, 0.0)[1] == 1e9


def test_the_table_and_its_document(tmp_path, capsys):
    here = benchmark.Machine(sharding.make_mesh(1, jax.devices()[:1]), 1e12, 1e9, "a rate", 0.0)
    made = [
        benchmark.TimedRow("step", 0.5, 250.0, 1000.0, "GFLOP/s", "a rate"),
        benchmark.TimedRow("optimizer", 0.25, 3.0, 1.0, "GB/s", "a copy"),
    ]
    config = tiny.config()
    benchmark.write_report(config, here, made, tmp_path / "runs" / "v1.5")
    printed = capsys.readouterr().out
    assert "| step | 500.0 | 250.0 GFLOP/s | 1,000.0 GFLOP/s | 25% | a rate |" in printed
    assert "| optimizer | 250.0 | 3.0 GB/s | 1.0 GB/s | 300% | a copy |" in printed
    document = json.loads((tmp_path / "runs" / "v1.5.json").read_text())
    assert document["rows"] == [row._asdict() for row in made]
    seconds = audio.crop_samples(37) / 16_000
    assert document["audio-seconds a second"] == pytest.approx(16 * seconds / 0.5, abs=0.05)
    assert (document["config"], document["batch"]) == ("music2vec:demo", 16)
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        benchmark.write_report(config, here, made, tmp_path / "file" / "x")
    assert capsys.readouterr().out == printed  # what was measured is told before
