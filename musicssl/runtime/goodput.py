"""Where a run's time goes, over all its lives: into steps, or into what steps have to wait for.

Time is measured where the host waits. The host runs up to two steps ahead of the devices, so a
short wait for input or for a save may cost them nothing: the shares are upper bounds of the loss.

A run may end and resume many times; each stretch is called a life. The account of each life is kept
in <workdir>/goodput.json, and shares refer to the time since the first life began. "repeated" is
the time of steps that one life took and a later one took again, because they had not been saved.
"down" is the time between the last record of one life and the start of the next. Nothing is known
about a killed life after its last record, which is at most RECORD seconds and one step, probe or
pass before its end.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import jax

from musicssl import paths
from musicssl.command import say

WAITS = (
    *("start", "restore", "codebook", "compile", "input", "save"),
    *("validation", "probe", "profile"),
)
KINDS = (*WAITS, "repeated", "down")
RECORD = 30.0  # seconds between two records: a bucket answers each in tens of milliseconds


class Life(TypedDict):
    """The account of one life of a run.

    began, ended: in seconds since 1970; `ended` is the time of the last record. first, step: how
    many steps were done when it began and when it ended. seconds: how long it waited, by kind.
    """

    began: float
    ended: float
    first: int
    step: int
    seconds: dict[str, float]


_seconds = dict.fromkeys(WAITS, 0.0)  # one run per process, so one account
_open: list[str] = []  # what is being waited for, the innermost last
_began = _counted = _recorded = time.monotonic()
_clock = time.time()  # when this life began
_steps = (0, 0)  # done when this life began, and now
_lives: list[Life] = []  # before this one
_path: Path | None = None  # where the lives are kept


def begin() -> None:
    """Start the account of a run, whose life begins now."""
    global _began, _counted, _clock, _steps, _path
    _began = _counted = time.monotonic()
    _clock, _steps, _path = time.time(), (0, 0), None
    _seconds.update(dict.fromkeys(WAITS, 0.0))
    _lives.clear()


def keep(workdir: Path, first: int) -> None:
    """Read the account of a run's earlier lives; from here on this life is added to it.

    Only the first process keeps one. If the account cannot be read, a line says so and a new one is
    begun.

    Args:
      first: the step that this life begins at.
    """
    global _steps, _path
    _steps = (first, first)
    if jax.process_index():
        return
    _path = workdir / "goodput.json"
    try:
        _lives[:] = [_life(x) for x in json.loads(_path.read_text())] if _path.exists() else []
    except (ValueError, TypeError, KeyError):
        say(f"{_path} cannot be read: the time of this run's earlier lives is not counted")
    write()


def _life(found: dict) -> Life:
    """Return a life from its record, with all values checked to be numbers."""
    return {
        "began": float(found["began"]),
        "ended": float(found["ended"]),
        "first": int(found["first"]),
        "step": int(found["step"]),
        "seconds": {str(kind): float(x) for kind, x in found["seconds"].items()},
    }


def record(step: int) -> None:
    """Note how many steps are done, and write the account every RECORD seconds."""
    global _steps
    _steps = (_steps[0], step)
    if time.monotonic() - _recorded >= RECORD:
        write()


def write() -> None:
    """Write the account; a failure does not end the run, since it may succeed next time."""
    global _recorded
    _recorded = time.monotonic()
    if _path is None:
        return
    with contextlib.suppress(Exception):  # of many kinds, where the workdir is in a bucket
        paths.write(_path, (json.dumps([*_lives, _this()], indent=1) + "\n").encode())


def _this() -> Life:
    """Return the account of this life until now."""
    _count()
    first, step = _steps
    ended = _clock + time.monotonic() - _began
    seconds = {kind: round(x, 3) for kind, x in _seconds.items() if x}
    return {"began": _clock, "ended": ended, "first": first, "step": step, "seconds": seconds}


@contextlib.contextmanager
def lost(kind: str) -> Iterator[None]:
    """Count the time within as lost to this kind, and not to an enclosing kind."""
    _count()
    _open.append(kind)
    try:
        yield
    finally:
        _count()
        _open.pop()


def _count() -> None:
    """Book the time since the last call."""
    global _counted
    now = time.monotonic()
    if _open:
        _seconds[_open[-1]] += now - _counted
    _counted = now


def account(lives: Sequence[Life]) -> dict[str, float]:
    """Return the seconds of a run's lives: of "goodput" and of each kind of loss.

    Args:
      lives: at least one, in the order in which they began.
    """
    total = dict.fromkeys(("goodput", *KINDS), 0.0)
    again, after = math.inf, math.inf  # the step that later lives began at, and when they began
    for life in reversed(lives):
        for kind, seconds in life["seconds"].items():
            total[kind] = total.get(kind, 0.0) + seconds

        # Only steps that no later life took again count.
        stepping = life["ended"] - life["began"] - sum(life["seconds"].values())
        taken = life["step"] - life["first"]
        counting = min(max(again - life["first"], 0), taken) / taken if taken else 1.0
        total["goodput"] += stepping * counting
        total["repeated"] += stepping * (1 - counting)

        if after < math.inf:
            total["down"] += max(0.0, after - life["ended"])
        again, after = min(again, life["first"]), life["began"]
    return total


def shares() -> dict[str, float]:
    """Return the shares of the run's time so far: "time/goodput", and "time/<kind>" of losses."""
    seconds = account([*_lives, _this()])
    total = max(sum(seconds.values()), 1e-9)
    return {f"time/{kind}": x / total for kind, x in seconds.items()}


def line() -> str:
    """Describe the shares in one line, the largest loss first."""
    seconds = account([*_lives, _this()])
    total = max(sum(seconds.values()), 1e-9)
    good = seconds.pop("goodput") / total
    parts = sorted(((x / total, kind) for kind, x in seconds.items() if x > 0), reverse=True)
    losses = ", ".join(f"{kind} {share:.1%}" for share, kind in parts)
    whole = int(total)
    clock = f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    lives = f" in {len(_lives) + 1} lives" if _lives else ""
    return f"goodput {good:.1%} of {clock}{lives}" + (f", lost to {losses}" if losses else "")
