"""SHA-256 of every file of a checkpoint, made as it is committed and checked before it is read.

Orbax keeps no digest from end to end: a flipped bit can restore as another number without a word.
The file `digests.json` of each part of a checkpoint is written before the rename that makes the
checkpoint visible, so a checkpoint that is there has its digests.
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
    """Write the digests of all files that the directory holds, at any depth, but for its own."""
    whole = paths.literal(directory)
    found = [top / name for top, _, names in whole.walk() for name in names if name != _NAME]
    digests = {path.relative_to(whole).as_posix(): _of_file(path) for path in sorted(found)}
    (whole / _NAME).write_text(json.dumps(digests, indent=1) + "\n")


def damage(directory: Path) -> str | None:
    """Return the first fault of a directory that `write` has seen, None if it is whole.

    Files that came after are not looked at.

    Raises:
      OSError: a bucket did not answer, which says nothing of what it holds.
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
    """Return whether an error is none of the file's; on a disk, EIO is a sector that is lost."""
    return storage_errno(error) is not None and (
        paths.is_remote(directory) or error.errno != errno.EIO
    )


class Digested(ocp.CheckpointHandler):
    """A checkpoint handler whose last act before the commit is to write the digests.

    check: called before that with the directory; what it raises keeps it from being committed.
    """

    check: Callable[[epath.Path], None] | None = None

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        if jax.process_index() == 0:  # the others' files are merged and closed by now
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
      check: of the state that was written, before it is committed.
    """
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    state, about = StateHandler(), DocumentHandler()
    state.check = check
    registry.add("state", ocp.args.StandardSave, state)
    registry.add("state", ocp.args.StandardRestore, state)
    registry.add("about", ocp.args.JsonSave, about)
    registry.add("about", ocp.args.JsonRestore, about)
    return registry
