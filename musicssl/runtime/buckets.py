"""Limits how long Orbax retries its requests to a bucket that does not answer.

Orbax writes and reads arrays through tensorstore, which retries a failed request for 15 minutes,
and has no setting for that. So a run would end long after its other reads have reported that the
bucket does not answer.
"""

import functools
import sys
from collections.abc import Callable

import orbax.checkpoint as ocp
import tensorstore

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 60.0  # seconds; each is twice the one before it


def limit_retries(seconds: float) -> None:
    """Let Orbax retry a request for this long, in checkpoints that are opened from now on."""
    # all parts of Orbax look the function up in the module that defines it
    plain = ocp.type_handlers.get_ts_context
    sys.modules[plain.__module__].get_ts_context = _limited(plain, seconds)  # type: ignore[attr-defined]


def _limited(make: Callable[..., tensorstore.Context], seconds: float) -> Callable:
    """Return a function that makes the same contexts, except for their retries."""

    @functools.wraps(make)
    def get_ts_context(*given: object, **named: object) -> tensorstore.Context:
        return tensorstore.Context({"gcs_request_retries": retries(seconds)}, make(*given, **named))

    return get_ts_context


def retries(seconds: float) -> dict[str, int | str]:
    """Return tensorstore's setting for retries whose pauses add up to this many seconds."""
    count, total = 0, 0.0
    while total < seconds:
        total += min(_FIRST_PAUSE * 2**count, _LONGEST_PAUSE)
        count += 1
    pauses = {"initial_delay": f"{_FIRST_PAUSE}s", "max_delay": f"{_LONGEST_PAUSE}s"}
    return {"max_retries": max(count, 1), **pauses}
