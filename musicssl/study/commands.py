"""The commands and commits behind the numbers of a study's report."""

import shlex
from html import escape


def provenance(found: dict, names: list[str]) -> str:
    """The commands and commits of stages, folded away."""
    names = list(dict.fromkeys(names))
    lines = "".join(stage_line(name, found["stages"][name]) for name in names)
    count = f"{len(names)} command{'s' * (len(names) != 1)}"
    return f"<details class='made'><summary>made by {count}</summary><ol>{lines}</ol></details>"


def makers(found: dict, datasets: set[str]) -> list[str]:
    """The stages that scores on data sets come from: the encoders' training, then the probes."""
    stages = found["stages"]
    return [x for x in stages if x.startswith("pretrain/")] + [
        x for x in stages if x.startswith("probe/") and x.rpartition("/")[2] in datasets
    ]


def stage_line(name: str, stage: dict) -> str:
    """A command, and at which commit and when it was run."""
    noted = stage["made"]
    about = f"commit {short(stage['commit'])} by its result, not noted by launch/study.py"
    if noted:
        about = f"commit {short(noted['commit']) or 'unknown'}, "
        if earlier := noted.get("earlier_commits"):  # interrupted, and gone on with
            about += f"begun at {' and '.join(map(short, earlier))}, "
        about += f"{noted['began']}, "
        about += f"{noted['seconds']:.0f} s, {noted['cpu_seconds']:.0f} s of processor time"
    elif not stage["commit"]:
        about = "not run, or its result was there before"
    command = escape(shlex.join(stage["command"]))
    return f"<li><code>{command}</code><br><span class='small'>{name}: {about}</span></li>"


def short(commit: str) -> str:
    """The first digits of a commit, and whether files differed from it."""
    digits = commit.removesuffix("-dirty")
    return digits[:12] + commit[len(digits) :]


def dirty(found: dict) -> str:
    """Which numbers no commit can make again, "" if there are none."""
    commits = [x["made"]["commit"] if x["made"] else x["commit"] for x in found["stages"].values()]
    count = sum(x.endswith("-dirty") for x in commits)
    if not count:
        return ""
    return (
        f"<p class='note'>{count} of {len(commits)} stages were run while files differed from the "
        "commit that is named: what they made cannot be made again from it.</p>"
    )


def every_stage(found: dict) -> str:
    """All commands, in an order in which they can run."""
    lines = "".join(stage_line(name, x) for name, x in found["stages"].items())
    return (
        "<p>Each command can be run alone; <code>launch/study.py</code> runs those whose result is "
        f"not there.</p><details><summary>{len(found['stages'])} stages</summary>"
        f"<ol>{lines}</ol></details>"
    )
