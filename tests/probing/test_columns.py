"""Which results are one column of a comparison, and what is said of it."""

import copy

import numpy as np
import pytest

from musicssl.probing import columns, metrics


def result(name: str, seed: int | None = None, shift: float = 0.0) -> dict:
    """An encoder's results of one task, of three probe seeds; `seed` is that of its training."""
    random = np.random.default_rng([ord(name[0]), seed or 0])
    shared = 0.03 * np.random.default_rng(0).standard_normal(500)
    own = 0.6 + shift + 0.02 * random.standard_normal(3)
    draws = own[:, None] + shared + 0.01 * random.standard_normal((3, 500))
    task = {
        "task": "a",
        "score": "accuracy",
        "title": "a task",
        "chosen": {
            "source": "0",
            "test": {"accuracy": {"mean": float(own.mean()), "sd": 0.02}},
            "test_seeds": own.tolist(),
            "draws": draws.tolist(),
        },
        "test_items": "these",
        "settings": {"kind": "mlp", "seeds": [1, 2, 3]},
        "chance": {"accuracy": 0.1},
    }
    config = {"seed": seed, "steps": 800, "mask.span": 10, "log_every": seed}
    run = None if seed is None else {"config": config, "step": 800}
    return {"encoder": f"runs/{name}", "digest": name, "run": run, "tasks": {"a": task}}


def changed(results: dict, path: str, value) -> dict:
    """A copy with another value at a path of keys."""
    results = copy.deepcopy(results)
    *before, last = path.split("/")
    held = results
    for key in before:
        held = held[key]
    held[last] = value
    return results


def test_runs_that_differ_in_their_seed_alone_are_one_column() -> None:
    shown = columns.of_results([result("m1", 1), result("x"), result("m2", 2), result("m3", 3)])
    assert [column.name for column in shown] == ["m1, m2, m3 (training seeds 1, 2, 3)", "x"]
    tasks = shown[0].results("a")
    score = columns.main_score(tasks)
    assert score.mean == pytest.approx(np.mean([task["chosen"]["test_seeds"] for task in tasks]))
    low, high = metrics.interval(metrics.over_seeds([task["chosen"]["draws"] for task in tasks]))
    assert (score.low, score.high) == (low, high)
    assert low < score.mean < high


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("run/config/mask.span", 5),
        ("run/config/seed", 1),  # the same run once more
        ("run/step", 700),
        ("run", None),
        ("tasks/a/test_items", "others"),
        ("tasks/a/settings/kind", "linear"),
        ("tasks/a/protocol", 2),  # the other is of an earlier version
        ("run/config/teacher.encoder", "another"),
        ("run/config/data.data_dir", "another"),
    ],
)
def test_others_are_columns_of_their_own(path: str, value) -> None:
    other = changed(result("m2", 2), path, value)
    assert len(columns.of_results([result("m1", 1), other])) == 2
    older = {name: held for name, held in result("m1", 1).items() if name != "run"}
    assert len(columns.of_results([older, older])) == 2


def test_columns_are_tested_by_all_of_their_seeds() -> None:
    first, second = columns.of_results([result("m1", 1), result("m2", 2), result("n1", None, 0.01)])
    found = columns.against(second.results("a"), first.results("a"))
    means = [columns.main_score(column.results("a")).mean for column in (second, first)]
    assert found.mean == pytest.approx(means[0] - means[1])
    of = [[task["chosen"]["draws"] for task in c.results("a")] for c in (second, first)]
    assert found == metrics.paired(of[0], of[1], found.mean)
    assert found.low < found.mean < found.high
    assert columns.against(first.results("a"), first.results("a")).p == 1


def test_what_does_not_compare_is_said() -> None:
    first, of_one = result("m"), result("old")["tasks"]["a"]["chosen"]["draws"][:1]
    older = changed(result("old"), "tasks/a/chosen/draws", of_one)
    other = changed(result("other"), "tasks/a/test_items", "others")
    linear = changed(result("linear"), "tasks/a/settings/kind", "linear")
    shown = columns.of_results([first, older, other, linear])
    assert columns.notes(shown, ["a"]) == [
        f"- a: old: {columns.ONE_SEED}",
        "- a: other: test items are not the same, so there is no test",
        "- a: linear: probed with kind linear instead of mlp",
    ]
    tested = columns.against(shown[1].results("a"), shown[0].results("a"))
    assert tested is not None and tested.p <= 1  # what can be tested is


def test_samples_of_rows_and_of_clips_do_not_compare() -> None:
    """Earlier versions drew rows of `synth_chord` one by one; those of clips are as ever."""

    def of_task(name: str, task: str, clips: int | None) -> dict:
        held = changed(result(name, 1 + (clips is None)), "tasks/a/task", task)
        if clips:
            held["tasks"]["a"]["test_clips"] = clips
        return held

    old, new = of_task("old", "synth_chord", None), of_task("new", "synth_chord", 48)
    assert columns.against([new["tasks"]["a"]], [old["tasks"]["a"]]) is None
    assert columns.of_earlier_versions(old["tasks"]["a"]) == [columns.ROWS]
    assert columns.of_earlier_versions(new["tasks"]["a"]) == []
    assert columns.against([old["tasks"]["a"]], [old["tasks"]["a"]]).p == 1
    of_run = (
        {"config": {"seed": 2, "steps": 1}, "step": 1},
        {"config": {"seed": 1, "steps": 1}, "step": 1},
    )
    shown = columns.of_results([old | {"run": of_run[0]}, new | {"run": of_run[1]}])
    assert columns.notes(shown, ["a"]) == [
        f"- a: old: {columns.ROWS}",
        "- a: new: bootstrap samples are not the same, so there is no test",
    ]

    of_clips = [of_task(name, "synth_key", clips) for name, clips in (("old", None), ("new", 48))]
    assert columns.against(*([held["tasks"]["a"]] for held in of_clips)) is not None
    shown = columns.of_results([x | {"run": y} for x, y in zip(of_clips, of_run, strict=True)])
    assert len(shown) == 1 and columns.notes(shown, ["a"]) == []
