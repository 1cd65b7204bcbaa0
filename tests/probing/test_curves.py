"""The picture of scores by the levels of a factor."""

from pathlib import Path

import matplotlib.image
import numpy as np

from musicssl.probing import curves


def result(title: str, **names: tuple[str, ...]) -> dict:
    """A task's result, as far as curves need one."""
    sources = {
        "0": {"mean": 0.7, "interval": [0.6, 0.8]},
        "sum": {"mean": 0.4, "interval": [0.3, 0.5]},
    }
    return {
        "title": title,
        "chosen": {"source": "sum"},
        "layers": [{"source": "0"}, {"source": "sum"}],
        "factors": {
            factor: [{"level": x, "items": 9, "chance": 0.1, "sources": sources} for x in levels]
            for factor, levels in names.items()
        },
    }


def test_every_task_and_factor_has_a_panel_with_a_curve_a_layer(tmp_path: Path) -> None:
    tasks = {
        "a": result("A", all=("all",), voices=("1", "2", "3"), detuning=("0", "10")),
        "b": result("B", all=("all",), octave=("2", "3"), timbre=("electric_piano", "synth")),
    }
    assert curves.panels(tasks) == [
        ("a", "voices"), ("b", "octave"), ("b", "timbre"), ("a", "detuning"),
    ]  # fmt: skip
    layers = curves.of_layers(tasks)
    assert [curve.name for curve in layers] == ["layer 0", "sum"]
    encoders = curves.of_encoders(["one", "two"], [tasks, tasks])
    assert encoders[1].shown["b"] == (tasks["b"], "sum")
    for number, drawn in enumerate((layers, encoders)):
        path = tmp_path / f"{number}.png"
        curves.draw(drawn, path)
        picture = matplotlib.image.imread(path)[..., :3]
        for curve in drawn:
            colour = matplotlib.colors.to_rgb(curve.colour)
            near = np.abs(picture - np.array(colour)).max(-1) < 0.04
            assert near.sum() > 500, curve.name
    older = {"a": {name: value for name, value in tasks["a"].items() if name != "factors"}}
    beside = [*encoders[:1], *curves.of_encoders(["older"], [older])]
    curves.draw(beside, tmp_path / "beside.png")  # draws what there is
    assert (tmp_path / "beside.png").exists()
    curves.draw(curves.of_layers({"c": result("C") | {"factors": {}}}), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
