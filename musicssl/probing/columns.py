"""Columns of a comparison: an encoder's results, or those of its runs from several training seeds.

Results whose training runs differ in their seed alone are one column. Its score is the mean over
probe seeds and then over training seeds, and its interval and tests are of that mean: seeds and
test clips are drawn together.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from musicssl import paths
from musicssl.probing import metrics
from musicssl.probing.schema import Results, TaskResult, TrainedBy
from musicssl.probing.tasks import TASKS
from musicssl.runtime.workdir import CHANGES_NOTHING


class Column(NamedTuple):
    """What a comparison shows in one column.

    name: of the encoder, and its training seeds if there are several.
    runs: the results of each training seed.
    """

    name: str
    runs: Sequence[Results]

    def results(self, task: str) -> list[TaskResult]:
        """Return the results of a task, of each training seed that has one."""
        return [run["tasks"][task] for run in self.runs if task in run["tasks"]]


class MainScore(NamedTuple):
    """A column's main score of a task: the mean over seeds, and its 95 % interval."""

    mean: float
    low: float
    high: float


def of_results(results: Sequence[Results]) -> list[Column]:
    """Put results into columns, in the order in which each column's first result comes.

    A result joins the first column of runs like its own that lacks its training seed, so that the
    same results given twice are two columns.
    """
    groups: list[list[Results]] = []
    for result in results:
        for group in groups:
            if _alike(group[0], result) and _seed(result) not in map(_seed, group):
                group.append(result)
                break
        else:
            groups.append([result])
    return [Column(_name(group), group) for group in groups]


def _alike(one: Results, other: Results) -> bool:
    """Return whether two results are of runs, and of probes, that may differ in their seed alone.

    Results that are not of a known training run are like no others.
    """
    mine, theirs = one.get("run"), other.get("run")
    if mine is None or theirs is None:
        return False
    if mine["step"] != theirs["step"] or _seedless(mine) != _seedless(theirs):
        return False
    for name in one["tasks"].keys() & other["tasks"].keys():
        tasks = one["tasks"][name], other["tasks"][name]
        if unlike(*tasks) or _drawn(tasks[0]) != _drawn(tasks[1]):
            return False
    return True


def _seedless(run: TrainedBy) -> dict[str, Any]:
    """Return the leaves of a run's configuration, without its seed and what changes no result."""
    leaves = run["config"].items()
    ignored = ("seed", *CHANGES_NOTHING)
    return {name: x for name, x in leaves if not name.startswith(ignored)}


def _seed(results: Results) -> int | None:
    run = results.get("run")
    return run["config"].get("seed") if run else None


def short_name(results: Results) -> str:
    """Return the encoder's name in a table."""
    return paths.short(results["encoder"])


def _name(group: Sequence[Results]) -> str:
    names = ", ".join(dict.fromkeys(short_name(results) for results in group))
    if len(group) == 1:
        return names
    return f"{names} (training seeds {', '.join(str(_seed(results)) for results in group)})"


def main_score(results: Sequence[TaskResult]) -> MainScore:
    """Return the main score of a task's results, one of each training seed."""
    low, high = metrics.interval(metrics.over_seeds([task["chosen"]["draws"] for task in results]))
    return MainScore(_mean(results), low, high)


def _mean(results: Sequence[TaskResult]) -> float:
    return float(np.mean([task["chosen"]["test"][task["score"]]["mean"] for task in results]))


def against(ours: Sequence[TaskResult], theirs: Sequence[TaskResult]) -> metrics.Difference | None:
    """Return the paired test of two columns' results of a task.

    It is None if test items or their bootstrap samples differ, or are not known.
    """
    samples = {_drawn(task) for task in (*ours, *theirs)}
    if len(samples) > 1 or None in next(iter(samples)):
        return None
    draws = [[task["chosen"]["draws"] for task in results] for results in (ours, theirs)]
    return metrics.paired(draws[0], draws[1], _mean(ours) - _mean(theirs))


def _drawn(task: TaskResult) -> tuple[str | None, int, bool]:
    """Return what distinguishes a result's bootstrap samples from those of others."""
    return task.get("test_items"), len(task["chosen"]["draws"][0]), _drew_rows(task)


def of_earlier_versions(task: TaskResult) -> list[str]:
    """Say how an earlier version computed the interval and p of a result differently."""
    lines = [ONE_SEED] if len(task["chosen"]["draws"]) < len(task["chosen"]["test_seeds"]) else []
    return [*lines, ROWS] if _drew_rows(task) else lines


def _drew_rows(task: TaskResult) -> bool:
    """Return whether samples were drawn item by item although several are of one clip."""
    known = TASKS.get(task["task"])
    return known is not None and not known.by_item and "test_clips" not in task


def notes(columns: Sequence[Column], tasks: Sequence[str]) -> list[str]:
    """Say which of the columns' figures cannot be compared with the first one's, and why."""
    lines = []
    for name in tasks:
        for column in columns:
            lines += [f"- {name}: {column.name}: {x}" for x in caveats(column, columns[0], name)]
    return lines


def caveats(column: Column, first: Column, task: str) -> list[str]:
    """Say why a column's figure of a task cannot be compared with the first column's."""
    results, others = column.results(task), first.results(task)
    settings = dict.fromkeys(unlike(result, others[0]) for result in results)
    lines = [f"probed with {text}" for text in settings if text]
    lines += dict.fromkeys(line for result in results for line in of_earlier_versions(result))
    if column is not first and against(results, others) is None:
        apart = {result.get("test_items") for result in (*results, *others)}
        what = "test items" if len(apart) > 1 else "bootstrap samples"
        lines.append(f"{what} are not the same, so there is no test")
    return lines


ONE_SEED = (
    "interval and p are of the one probe seed that did best on validation, as an earlier version "
    "wrote them; the score is the mean over seeds"
)
ROWS = (
    "interval and p are too small, since an earlier version drew the items of a clip as if they "
    "were independent; evaluate again"
)


def unlike(task: TaskResult, other: TaskResult) -> str:
    """Return in words how a result's settings differ from another's, if both have them."""
    ours, theirs = (
        x.get("settings", {}) | {"protocol version": x.get("protocol", 1)} for x in (task, other)
    )
    changed = [name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
    return ", ".join(f"{name} {ours[name]} instead of {theirs[name]}" for name in sorted(changed))
