"""The picture of a run."""

import json
from pathlib import Path

from musicssl.training import curves


def write(workdir: Path, lines: list[dict]) -> None:
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_a_run_has_logged_is_sorted_into_panels(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            {"step": 5, "loss": 2.0, "time/goodput": 0.5},
            {"step": 5, "validation/loss": 2.5, "validation/masked_accuracy/mel": 0.1},
            {"step": 5, "health/stem_std": 0.3, "health/layer_0_std": 1, "health/stem_rank": 9},
            {"step": 6, "probe/synth_key": 0.4, "loss": 1.5},
        ],
    )
    points = curves.series(tmp_path)
    assert points["loss"] == [(5, 2.0), (6, 1.5)]
    assert curves.panels(list(points)) == {
        "loss": {"training": "loss", "validation": "validation/loss"},
        "validation: accuracy at masked frames": {
            "masked_accuracy/mel": "validation/masked_accuracy/mel"
        },
        "layers: deviation of frames": {"stem": "health/stem_std", "layer 0": "health/layer_0_std"},
        "layers: effective rank of frames": {"stem": "health/stem_rank"},
        "probes: test score": {"synth_key": "probe/synth_key"},
    }
    path = curves.draw(tmp_path)
    assert path == tmp_path / "curves.png" and path.read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".png"] == ["curves.png"]


def test_a_run_that_has_logged_nothing_has_no_picture(tmp_path: Path) -> None:
    assert curves.draw(tmp_path) is None
    assert not list(tmp_path.iterdir())
