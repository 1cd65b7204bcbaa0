"""The table of tasks, and what it says of the data sets' sizes and labels."""

from pathlib import Path

import pytest

from data_pipelines.build import load_builder
from musicssl.probing import published, session, tasks
from musicssl.probing.task_kinds import kind_of
from musicssl.probing.tasks import TASKS


def test_there_are_the_13_tasks_the_embedded_six_and_seven_on_polyphony() -> None:
    assert len(tasks.SUITES["mir"]) == 13
    assert len(tasks.SUITES["synth"]) == 6
    assert len(tasks.SUITES["poly"]) == 7
    assert len(tasks.choose("synth,gtzan_genre,synth_key")) == 7
    assert [t.name for t in tasks.choose(" mir ")] == list(tasks.SUITES["mir"])


@pytest.mark.parametrize(("names", "message"), [("gtzan", "there is no 'gtzan'"), ("", "is empty")])
def test_unknown_tasks_are_refused(names: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.choose(names)


def test_windows_are_standardised_alone_where_marbles_code_does_so() -> None:
    """It cuts GiantSteps and VocalSet into files of 30 s and 3 s, and standardises each file."""
    alone = {name for name, task in TASKS.items() if task.standardised_alone}
    assert alone == {"giantsteps_key", "vocalset_technique", "vocalset_singer"}


@pytest.mark.parametrize("name", tasks.SUITES["mir"])
def test_sizes_are_those_the_builder_expects(name: str, tmp_path) -> None:
    task = TASKS[name]
    expected = load_builder(task.dataset, None, str(tmp_path)).EXPECTED_SIZES
    prefix = f"{task.label}/" if task.dataset == "mtg_jamendo" else ""
    if not expected:  # of VocalSet only 3 s chunks are published
        assert task.dataset == "vocalset"
        assert task.sizes is None
    else:
        assert task.sizes == tuple(expected[prefix + split] for split in tasks.SPLITS)


@pytest.mark.parametrize("name", [n for n in tasks.SUITES["mir"] if published.chance(n)])
def test_labels_that_are_not_the_published_ones_are_told(
    name: str, capsys: pytest.CaptureFixture
) -> None:
    score, published_chance = published.chance(name)
    assert score in kind_of(TASKS[name]).score_names
    near, far = (-0.03, -0.1) if score == "r2" else (0.002, 0.02)
    session.warn_of_chance(TASKS[name], {score: published_chance + near}, limit=0)
    session.warn_of_chance(TASKS[name], {score: published_chance + far}, limit=9)  # a part of them
    assert not capsys.readouterr().err
    session.warn_of_chance(TASKS[name], {score: published_chance + far}, limit=0)
    assert f"{name}: without the audio {score} is" in capsys.readouterr().err


def test_the_table_of_deviations_names_tasks_that_exist() -> None:
    text = (Path(tasks.__file__).parent / "protocol.md").read_text()
    text = text.split("## Where it differs")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")][1:]
    named = [name.strip(" `") for row in rows for name in row[0].split(",")]
    assert len(rows) > 12 and all(len(row) == 4 and all(x.strip() for x in row) for row in rows)
    assert set(named) - {"all"} <= set(tasks.SUITES["mir"])
