"""The commands and commits behind the numbers of a study's report."""

import shlex
from collections.abc import Collection, Sequence
from html import escape

from musicssl.study.schema import Stage, Study


def provenance(study: Study, names: Sequence[str]) -> str:
    """Return the commands and commits of stages, in a folded element."""
    names = list(dict.fromkeys(names))
    lines = "".join(_stage_line(name, study["stages"][name]) for name in names)
    count = f"{len(names)} command{'s' * (len(names) != 1)}"
    return f"<details class='made'><summary>made by {count}</summary><ol>{lines}</ol></details>"


def makers(study: Study, datasets: Collection[str]) -> list[str]:
    """Return the stages that scores on data sets come from: all trainings, then the probes."""
    stages = study["stages"]
    trainings = [name for name in stages if name.startswith("pretrain/")]
    probes = [name for name in stages if name.startswith("probe/")]
    return trainings + [name for name in probes if name.rpartition("/")[2] in datasets]


def _stage_line(name: str, stage: Stage) -> str:
    """Return a command, and at which commit and when it was run."""
    record = stage["made"]
    if record:
        about = f"commit {_short_commit(record['commit']) or 'unknown'}, "
        if earlier := record.get("earlier_commits"):  # interrupted and resumed
            about += f"begun at {' and '.join(map(_short_commit, earlier))}, "
        about += f"{record['began']}, "
        about += f"{record['seconds']:.0f} s, {record['cpu_seconds']:.0f} s of processor time"
    elif stage["commit"]:
        commit = _short_commit(stage["commit"])
        about = f"commit {commit} according to its result; launch/study.py did not run it"
    else:
        about = "not run, or its result existed before"
    command = escape(shlex.join(stage["command"]))
    return f"<li><code>{command}</code><br><span class='small'>{name}: {about}</span></li>"


def _short_commit(commit: str) -> str:
    """Return the first digits of a commit, and whether files differed from it."""
    digits = commit.removesuffix("-dirty")
    return digits[:12] + commit[len(digits) :]


def dirty(study: Study) -> str:
    """Say how many stages cannot be reproduced from a commit; return "" if there are none."""
    commits = []
    for stage in study["stages"].values():
        commits.append(stage["made"]["commit"] if stage["made"] else stage["commit"])
    count = sum(commit.endswith("-dirty") for commit in commits)
    if not count:
        return ""
    return (
        f"<p class='note'>{count} of {len(commits)} stages were run while files differed from the "
        "named commit, so their results cannot be reproduced from it.</p>"
    )


def every_stage(study: Study) -> str:
    """Return all commands, in an order in which they can run."""
    lines = "".join(_stage_line(name, stage) for name, stage in study["stages"].items())
    return (
        "<p>Each command can be run alone; <code>launch/study.py</code> runs those whose result is "
        f"missing.</p><details><summary>{len(study['stages'])} stages</summary>"
        f"<ol>{lines}</ol></details>"
    )
