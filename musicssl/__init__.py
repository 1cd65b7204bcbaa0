"""musicssl: self-supervised pre-training of music encoders in JAX."""

import os
import sys


def _is_command() -> bool:
    """Return whether a command is starting, through `python -m` or the package's script."""
    return sys.argv[0] == "-m" or os.path.basename(sys.argv[0]) == "musicssl"


def _check_environment() -> None:
    """Import JAX and Flax if environment variables configure them, to report refused values.

    Both read variables such as JAX_ENABLE_X64 when they are imported, before a command starts, and
    answer a value that they refuse with a traceback.

    Raises:
      ValueError: a value is refused. A command ends with exit code 2 instead.
    """
    given = {k: v for k, v in os.environ.items() if k.startswith(("JAX_", "FLAX_"))}
    if not given.keys() - {"JAX_PLATFORMS"}:  # read later: environment.require_devices
        return
    try:
        import flax  # noqa: F401
    except ImportError:  # whoever needs it says so
        return
    except Exception as error:
        told = " ".join(str(error).split())
        # Some messages contain only the value.
        given.pop("JAX_PLATFORMS", None)
        named = [k for k in given if k in told or k.lower() in told]
        named = named or [k for k, v in given.items() if v and v.lower() in told.lower()]
        line = f"{' or '.join(named or given)} in the environment is refused ({told}): leave it out"
        if _is_command():
            print(f"musicssl: {line}", file=sys.stderr)
            sys.exit(2)
        raise ValueError(line) from error


if _is_command():
    os.environ["MPLBACKEND"] = "agg"  # plots go to files; matplotlib refuses unknown backends
_check_environment()
