"""Which run a workdir holds: its configuration, its saved steps, and the commit of the code."""

import json
import math
import os
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

import jax
import ml_collections

from musicssl import command, paths

# Leaves that change how a run goes, not what it computes.
CHANGES_NOTHING = (
    "log_every",
    "profile",
    "tracker",
    "nonfinite",
    "checkpoint.",
    "probe.",
    "validate.",
    "mesh.",
    "data.mirror",
    "data.on_damage",
    "data2vec.guard_after",
    "data2vec.min_",
    "hubert.min_",
    "hubert.unmasked_accuracy",
    "then",
)
# Leaves that may differ when a run resumes, since what it reads may have moved meanwhile. In two
# separate runs, the same leaves may name different data sets or teachers.
MAY_CHANGE = (
    *CHANGES_NOTHING,
    "data.data_dir",
    "teacher.encoder",  # the codebook's digest refuses another one
)
_MARK = "commit_success.txt"  # the file that Orbax writes last if it cannot rename folders
RENAMED = {"probe.probe": "probe.kind"}  # leaves in configurations that older versions wrote
# Leaves that older versions did not have, with the values that mean what those did.
ADDED = {
    "teacher.targets": "",
    "teacher.weights": [],
    "teacher.projection": 16,
    "data.order": "shuffled",
    "encoder.stem_start": "random",
    "data.mix": "",
}


def flat(config: dict, prefix: str = "") -> dict:
    """Flatten {"a": {"b": 1}} to {"a.b": 1}, as command-line flags are spelt."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        leaves |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return leaves


def claim(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Write <workdir>/config.json; if there are checkpoints, check that they are of this run.

    Raises:
      ValueError: the directory holds another run, or checkpoints of an unknown run, or other files.
      OSError: the bucket did not answer for minutes.
    """
    path = workdir / "config.json"
    mine = json.loads(config.to_json())
    if steps_on_disk(workdir):
        try:
            theirs = read_leaves(path)
        except (OSError, ValueError, AttributeError) as error:  # not JSON, or not a configuration
            if command.storage_errno(error):
                raise
            raise ValueError(
                f"{workdir} holds checkpoints, but {path} cannot be read ({error}): put the "
                "configuration back, or use another --workdir"
            ) from error
        ours = flat(mine)
        theirs = {name: value for name, value in ADDED.items() if name in ours} | theirs
        changed = [
            f"{name} ({_spelt(theirs, name)} there, {_spelt(ours, name)} here)"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name) and not name.startswith(MAY_CHANGE)
        ]
        if changed:
            raise ValueError(
                f"{workdir} holds a run of another configuration: {', '.join(changed)}. Use "
                "another --workdir, or the same values to resume that run"
            )
    elif path.exists() and not _wrote(path):
        raise ValueError(
            f"{path} belongs to no run and would be overwritten: use another --workdir"
        )

    # written by one process, and only where it changes something
    text = json.dumps(mine, indent=2) + "\n"
    if jax.process_index() == 0 and not (path.exists() and path.read_text() == text):
        workdir.mkdir(parents=True, exist_ok=True)
        paths.write(path, text.encode())


def require_writable(workdir: Path) -> None:
    """Raise OSError if a run cannot write to its workdir."""
    try:
        if paths.is_remote(workdir):
            own = workdir / f".{uuid.uuid4().hex}"
            own.write_bytes(b"")
            own.unlink()
        else:
            with tempfile.TemporaryFile(dir=workdir):
                pass
    except OSError as error:
        if command.storage_errno(error):
            raise
        raise OSError(
            f"{workdir} cannot be written to ({error.strerror}), but the run is not complete: make "
            "it writable, or use another --workdir"
        ) from error


def metrics(workdir: Path) -> list[tuple[bytes, dict[str, float] | None]]:
    """Return the lines of a run's metrics.jsonl, each with its scalars.

    None stands for the scalars of an unreadable line, such as a crash may leave.
    """
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return [(line, _scalars(line)) for line in lines]


def _scalars(line: bytes) -> dict[str, float] | None:
    try:
        scalars = json.loads(line)
    except ValueError:  # also for invalid Unicode
        return None
    if not line.endswith(b"\n") or not isinstance(scalars, dict) or "step" not in scalars:
        return None
    return scalars if all(isinstance(x, (int, float)) for x in scalars.values()) else None


def read_leaves(path: Path) -> dict:
    """Return the leaves of a run's config.json by their current names."""
    leaves = flat(json.loads(path.read_text()))
    return {RENAMED.get(name, name): value for name, value in leaves.items()}


def _spelt(leaves: dict, name: str) -> str:
    return repr(leaves[name]) if name in leaves else "not known"


def _wrote(path: Path) -> bool:
    """Return whether `claim` wrote this file: a Hugging Face directory has a config.json too."""
    try:
        return {"name", "variant", "method"} <= json.loads(path.read_text()).keys()
    except (OSError, ValueError, AttributeError) as error:
        if command.storage_errno(error):
            raise
        return False


def git_commit() -> str:
    """Return the commit of the code, with "-dirty" if files differ from it.

    Outside git, as in an image, it is the value of MUSICSSL_COMMIT, or "".
    """
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent)]
    command += ["describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        commit = result.stdout.strip()
    except OSError:  # no git on this machine
        commit = ""
    return commit or os.environ.get("MUSICSSL_COMMIT", "")


def is_better(score: str, value: float, best: float | None) -> bool:
    """Return whether a validation score is better than the best so far, if there is one."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value > best if "accuracy" in score else value < best


def best_step(workdir: Path, score: str) -> tuple[int, float] | None:
    """Return the saved step with the best validation score, and the score; None if there is none.

    Args:
      score: as in validate.score.
    """
    saved = set(steps_on_disk(workdir))
    best: tuple[int, float] | None = None
    for _, scalars in metrics(workdir):
        if scalars is None or scalars["step"] not in saved:
            continue
        value = scalars.get(f"validation/{score}")
        if value is not None and is_better(score, value, best[1] if best else None):
            best = int(scalars["step"]), value
    return best


def step_of(workdir: Path, text: str) -> int | None:
    """Return the step that a command names: "" for the last, "best", or a number.

    Raises:
      ValueError: it is none of these, or the run has not validated.
    """
    if not text:
        return None
    if text.isdigit():
        return int(text)
    if text != "best":
        raise ValueError(f"step is {text!r}: use a number, best, or nothing for the last")
    path = workdir / "config.json"
    score = read_leaves(path).get("validate.score", "loss") if path.is_file() else "loss"
    best = best_step(workdir, score)
    if best is None:
        raise ValueError(
            f"{workdir} has no best step: none of its saved steps was validated (set "
            "--config.validate.every when training)"
        )
    return best[0]


def steps_on_disk(workdir: Path) -> list[int]:
    """Return the committed steps of a workdir, ascending."""
    root = workdir / "checkpoints"
    if not root.is_dir():
        return []
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit() and _is_committed(p))


def _is_committed(step: Path) -> bool:
    """Return whether a save is complete; one on gs:// has its name from the start, then a mark."""
    return (step / _MARK).exists() if paths.is_remote(step) else step.is_dir()
