"""What is written of an encoder's tasks."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from musicssl.probing import columns, report, schema


def task(name: str, **fields) -> dict:
    """A result of the form that the report takes, of three probe seeds."""
    draws = 0.6 + 0.05 * np.random.default_rng(0).standard_normal((3, 200))
    score = {"mean": 0.6, "sd": 0.01}
    return {
        "task": name,
        "title": f"the task {name}",
        "score": "accuracy",
        "chosen": {
            "source": "1",
            "test": {"accuracy": score},
            "test_seeds": [0.59, 0.6, 0.61],
            "interval": [0.5, 0.7],
            "draws": draws.tolist(),
        },
        "test_items": "these",
        "layers": [{"source": "1", "test": {"accuracy": score}}],
        "factors": {},
        "chance": {"accuracy": 0.1},
        "items": {"train": 443, "validation": 197, "test": 290},
        "published_items": [443, 197, 290],
        "settings": {"kind": "mlp", "epochs": 0, "limit": 0},
        "protocol": schema.PROTOCOL,
        "classes": [],
        "confusion": None,
        "unscored_classes": [],
        "untrained_classes": [],
    } | fields


def written(folder: Path, *tasks: dict, **about) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    held = {"encoder": folder.name, "features": folder.name, "digest": "", "config": {}} | about
    tasks = {one["task"]: one for one in tasks}
    (folder / "results.json").write_text(json.dumps(held | {"tasks": tasks}))
    return report.write(folder)


def test_the_same_grid_is_said_of_the_same_settings_alone(tmp_path: Path) -> None:
    table = written(tmp_path / "a", task("gtzan_genre"), task("synth_key"))
    assert "Published: MARBLE, arXiv:2306.10548v1" in table
    assert "The grid of probes is the same.\n" in table
    quick = {"kind": "linear", "epochs": 2, "limit": 0}
    table = written(tmp_path / "b", task("gtzan_genre", settings=quick), task("nsynth_pitch"))
    assert "The grid of probes is the same" not in table
    another = "another grid: kind linear instead of mlp, epochs 2 instead of the task's"
    assert f"\n- gtzan_genre: {another}\n- nsynth_pitch: the same grid\n" in table
    assert "Published:" not in written(tmp_path / "c", task("synth_key"))


def test_what_has_no_seeds_has_no_deviation(tmp_path: Path) -> None:
    assert "| 60.0 ± 1.0 |" in written(tmp_path / "mlp", task("synth_key"))
    ridge = written(tmp_path / "ridge", task("synth_key", settings={"kind": "ridge"}))
    assert "| 60.0 |" in ridge and "±" not in ridge and "mean over seeds" not in ridge


def test_results_of_earlier_versions_are_read_and_told(tmp_path: Path) -> None:
    old, new = task("a"), task("a")
    old["chosen"]["draws"] = old["chosen"]["draws"][0]  # of the seed that did best on validation
    written(tmp_path / "new", new)
    assert f"- a: {columns.ONE_SEED}" in written(tmp_path / "old", old)
    assert np.shape(report.load(tmp_path / "old")["tasks"]["a"]["chosen"]["draws"]) == (1, 200)
    table = report.compare([tmp_path / "new", tmp_path / "old"], tmp_path / "both")
    assert "| new | old | chance |" in table and re.search(r"\), p \d\.\d{3} \|", table)
    assert f"- a: old: {columns.ONE_SEED}" in table and "- a: new" not in table
    single = task("a")
    single["chosen"] |= {"draws": single["chosen"]["draws"][0], "test_seeds": [0.6]}
    assert columns.ONE_SEED not in written(tmp_path / "single", single)  # there is no other seed


def test_training_seeds_are_one_column_of_the_table_and_the_picture(tmp_path: Path) -> None:
    folders = []
    for seed, mean in ((1, 0.5), (2, 0.7)):
        of_seed = task("a")
        of_seed["chosen"]["test"] = {"accuracy": {"mean": mean, "sd": 0.0}}
        folders.append(tmp_path / f"m{seed}")
        run = {"config": {"seed": seed, "steps": 9}, "step": 9}
        written(folders[-1], of_seed, run=run)
    written(tmp_path / "logmel", task("a"), run=None)
    table = report.compare([*folders, tmp_path / "logmel"], tmp_path / "both")
    assert "| task | score | m1, m2 (training seeds 1, 2) | logmel | chance |" in table
    assert "| the task a | accuracy | 60.0 (" in table
    assert (tmp_path / "both/compare.png").read_bytes()[:4] == b"\x89PNG"


def test_results_of_another_encoder_are_not_overwritten(tmp_path: Path) -> None:
    report.save(tmp_path, {"task": "a"}, {"digest": "1", "features": "one"})
    report.save(tmp_path, {"task": "b"}, {"digest": "1", "features": "one"})
    assert list(report.load(tmp_path)["tasks"]) == ["a", "b"]
    with pytest.raises(ValueError, match="is of another encoder"):
        report.save(tmp_path, {"task": "a"}, {"digest": "2", "features": "two"})
    for content in (b"", b"{", b"\xff\xfe{", b"[]", b"{}", b'{"tasks": []}'):
        (tmp_path / "results.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"results.json is damaged \(.*move it away"):
            report.load(tmp_path)
