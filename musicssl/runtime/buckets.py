"""How long Orbax bears with a bucket that does not answer: as long as everything else does.

tensorstore, by which Orbax writes and reads arrays, tries a request that failed again for 15
minutes, and Orbax has no setting for it. So a run that saves would end long after its reads said
that the bucket is away.
"""

import functools
import sys
from collections.abc import Callable

import orbax.checkpoint as ocp
import tensorstore

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 60.0  # seconds; each is twice the one before it


def bear(seconds: float) -> None:
    """Have Orbax's requests end in an error about so many seconds after the first that failed.

    Checkpoints that are opened from now on follow this.
    """
    # all parts of Orbax call the function by the name of the module that it is defined in
    plain = ocp.type_handlers.get_ts_context
    sys.modules[plain.__module__].get_ts_context = _patient(plain, seconds)  # type: ignore[attr-defined]


def _patient(make: Callable[..., tensorstore.Context], seconds: float) -> Callable:
    """Return a function that makes the same contexts, with other repetitions."""

    @functools.wraps(make)
    def get_ts_context(*given: object, **named: object) -> tensorstore.Context:
        return tensorstore.Context(
            {"gcs_request_retries": repetitions(seconds)}, make(*given, **named)
        )

    return get_ts_context


def repetitions(seconds: float) -> dict[str, int | str]:
    """Return tensorstore's repetitions of a request, whose pauses add up to so many seconds."""
    count, total = 0, 0.0
    while total < seconds:
        total += min(_FIRST_PAUSE * 2**count, _LONGEST_PAUSE)
        count += 1
    pauses = {"initial_delay": f"{_FIRST_PAUSE}s", "max_delay": f"{_LONGEST_PAUSE}s"}
    return {"max_retries": max(count, 1), **pauses}
