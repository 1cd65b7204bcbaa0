"""Where a run's time goes: into steps, or into what a step has to wait for.

Time is measured where the host waits. The host is up to two steps ahead of the devices, so a short
wait for input or for a save may cost them nothing: the shares are upper bounds of what is lost.
"""

import contextlib
import time
from collections.abc import Iterator

KINDS = ("start", "restore", "codebook", "compile", "input", "save", "validation", "probe")

_seconds = dict.fromkeys(KINDS, 0.0)  # one run a process, so one account
_open: list[str] = []  # what is being waited for, the innermost last
_began = _counted = time.monotonic()


def begin() -> None:
    """Start the account of a run, which begins now."""
    global _began, _counted
    _began = _counted = time.monotonic()
    _seconds.update(dict.fromkeys(KINDS, 0.0))


@contextlib.contextmanager
def lost(kind: str) -> Iterator[None]:
    """Count the time within as lost to this kind, and not to one that it is within."""
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


def shares() -> dict[str, float]:
    """Return the shares of the run's time so far: "time/goodput", and "time/<kind>" of losses."""
    _count()
    total = max(time.monotonic() - _began, 1e-9)
    lost_shares = {f"time/{kind}": seconds / total for kind, seconds in _seconds.items()}
    return {"time/goodput": 1 - sum(lost_shares.values()), **lost_shares}


def line() -> str:
    """Describe the shares in one line, the largest loss first."""
    time_shares, total = shares(), int(time.monotonic() - _began)
    good = time_shares.pop("time/goodput")
    parts = sorted(
        ((share, name) for name, share in time_shares.items() if share > 0), reverse=True
    )
    losses = ", ".join(f"{name.removeprefix('time/')} {share:.1%}" for share, name in parts)
    clock = f"{total // 3600}:{total // 60 % 60:02}:{total % 60:02}"
    return f"goodput {good:.1%} of {clock}" + (f", lost to {losses}" if losses else "")
