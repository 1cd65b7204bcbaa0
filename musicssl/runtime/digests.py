"""SHA-256 of every file of a checkpoint, computed at its commit and checked before it is read.

Orbax keeps no digest from end to end: a flipped bit can be restored as another number without an
error. The file `digests.json` of each part of a checkpoint is written before the rename that makes
the checkpoint visible, so every visible checkpoint has its digests.
"""

import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath

from musicssl import paths
from musicssl.command import storage_errno

_NAME = "digests.json"


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(directory: Path) -> None:
    """Write the digests of all other files in the directory, at any depth."""
    whole = paths.literal(directory)
    found = [top / name for top, _, names in whole.walk() for name in names if name != _NAME]
    digests = {path.relative_to(whole).as_posix(): _of_file(path) for path in sorted(found)}
    (whole / _NAME).write_text(json.dumps(digests, indent=1) + "\n")


def damage(directory: Path) -> str | None:
    """Return the first fault of a directory with digests; None if it is intact.

    Files that were added later are ignored.

    Raises:
      OSError: a bucket did not answer, or refused to, which says nothing about what it holds.
    """
    try:
        known = json.loads((directory / _NAME).read_text())
    except OSError as error:
        if _is_away(directory, error):
            raise
        return f"{directory.name}/{_NAME} is missing"
    except ValueError:
        return f"{directory.name}/{_NAME} is not what was saved"
    for name, digest in known.items():
        try:
            if _of_file(directory / name) != digest:
                return f"{directory.name}/{name} is not what was saved"
        except OSError as error:
            if _is_away(directory, error):
                raise
            return f"{directory.name}/{name} cannot be read: {error.strerror or error}"
    return None


def _is_away(directory: Path, error: OSError) -> bool:
    """Return whether an error is not the file's fault; on a disk, EIO means a lost sector."""
    if isinstance(error, PermissionError) and paths.is_remote(directory):  # an expired login, say
        return True
    return storage_errno(error) is not None and (
        paths.is_remote(directory) or error.errno != errno.EIO
    )


class Digested(ocp.CheckpointHandler):
    """A checkpoint handler whose last act before the commit is to write the digests.

    check: called with the directory before that; what it raises prevents the commit.
    """

    check: Callable[[epath.Path], None] | None = None

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        if jax.process_index() == 0:  # the other processes' files are merged and closed by now
            if self.check:
                self.check(directory)
            write(directory)


class StateHandler(Digested, ocp.StandardCheckpointHandler):
    pass


class DocumentHandler(Digested, ocp.JsonCheckpointHandler):
    pass


def handlers(check: Callable[[epath.Path], None]) -> ocp.handlers.CheckpointHandlerRegistry:
    """Return Orbax's handlers, with digests, of a checkpoint's two parts, `state` and `about`.

    Args:
      check: checks the state that was written, before it is committed.
    """
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    state, about = StateHandler(), DocumentHandler()
    state.check = check
    registry.add("state", ocp.args.StandardSave, state)
    registry.add("state", ocp.args.StandardRestore, state)
    registry.add("about", ocp.args.JsonSave, about)
    registry.add("about", ocp.args.JsonRestore, about)
    return registry
