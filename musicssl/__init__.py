"""musicssl: self-supervised pre-training of music encoders in JAX."""

import os
import sys


def _is_command() -> bool:
    """Return whether a command begins, by `python -m` or by the script of the package."""
    return sys.argv[0] == "-m" or os.path.basename(sys.argv[0]) == "musicssl"


def _check_environment() -> None:
    """Import JAX and Flax where variables set them, since they refuse values by a traceback.

    They read JAX_ENABLE_X64 and its like as they are imported, which is before a command begins.

    Raises:
      ValueError: a value is refused. A command ends with exit code 2 instead.
    """
    given = {k: v for k, v in os.environ.items() if k.startswith(("JAX_", "FLAX_"))}
    if not given.keys() - {"JAX_PLATFORMS"}:  # that is read later: environment.require_devices
        return
    try:
        import flax  # noqa: F401
    except ImportError:  # whoever needs it says so
        return
    except Exception as error:
        told = " ".join(str(error).split())
        # Some messages have the value alone.
        given.pop("JAX_PLATFORMS", None)
        named = [k for k in given if k in told or k.lower() in told]
        named = named or [k for k, v in given.items() if v and v.lower() in told.lower()]
        line = f"{' or '.join(named or given)} in the environment is refused ({told}): leave it out"
        if _is_command():
            print(f"musicssl: {line}", file=sys.stderr)
            sys.exit(2)
        raise ValueError(line) from error


if _is_command():
    os.environ["MPLBACKEND"] = "agg"  # pictures are files; matplotlib refuses what it does not know
_check_environment()
