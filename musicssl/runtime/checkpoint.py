"""States on disk: one Orbax checkpoint a step under <workdir>/checkpoints.

Each checkpoint holds the state and a small JSON document: the configuration, the git commit, the
step, the processes and devices, the versions and settings. Saves are asynchronous and become
visible by one rename, or on gs:// by the file that is written last, so a process that dies while
saving leaves the checkpoints before it untouched. A save is opened before it is committed, and once
more before the run relies on it. Files are compared with the digests of their save before they are
read.
"""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy

from musicssl import environment, paths
from musicssl.command import first_line, storage_errno
from musicssl.runtime import digests, distributed
from musicssl.runtime.workdir import git_commit, steps_on_disk


@dataclasses.dataclass
class _Best:
    """A policy of Orbax that keeps one step, if there is one."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Return which of the checkpoints are that step's."""
        return [saved.step == self.step for saved in checkpoints]


class Checkpoints:
    """The saved states of a workdir: when to save, what to keep, where to go on."""

    def __init__(
        self, workdir: Path, config: ml_collections.ConfigDict, data: dict[str, int] | None = None
    ):
        """Open the saves of `workdir`; `data` has counts that tell its data set from others."""
        self.directory = workdir.absolute() / "checkpoints"
        self.about = {
            "config": json.loads(config.to_json()),
            "commit": git_commit(),
            "processes": jax.process_count(),
            "devices": jax.device_count(),
            "data": data or {},
            "environment": environment.described(),
        }
        self.under_way: int | None = None  # the step that is being saved
        self.shapes: Any = None  # of the state that was saved last
        self.best = _Best()  # the step with the best validation score, which is kept too
        self.on_damage = config.checkpoint.on_damage
        self.damage = functools.cache(lambda step: damage(self.directory / str(step)))

        # which saves stay, and when one is due
        keep = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(config.checkpoint.keep),
                preservation_policy.EveryNSteps(config.checkpoint.keep_every),
                self.best,
            ]
        )
        due = save_decision_policy.AnySavePolicy(
            [
                save_decision_policy.FixedIntervalPolicy(config.checkpoint.every),
                save_decision_policy.SpecificStepsPolicy({config.steps}),
            ]
        )

        self.manager = ocp.CheckpointManager(
            paths.literal(self.directory),
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=due,
                preservation_policy=keep,
                # not on a read-only disk, where a complete run may be kept
                cleanup_tmp_directories=paths.is_remote(self.directory)
                or os.access(self.directory, os.W_OK),
                enable_async_checkpointing=True,
            ),
            handler_registry=digests.handlers(self.require_saved),
        )

    def latest(self) -> int | None:
        """Return the newest step that is committed on disk and intact; None if there is none.

        With checkpoint.on_damage="older", newer steps, which are damaged, are moved to
        <workdir>/damaged.

        Raises:
          ValueError: the newest is damaged, and checkpoint.on_damage is "stop" or none is intact.
        """
        workdir = self.directory.parent
        steps = steps_on_disk(workdir)
        newest = steps[-1] if steps else -1
        lost: dict[int, str] = {}
        while steps and (reason := self.damage(steps[-1])):
            lost[steps.pop()] = reason

        # either the run stops here, or the damaged steps are set aside
        if lost and (self.on_damage == "stop" or not steps):
            remedy = "no other save is intact: put this one back"
            if steps:
                remedy = f"--config.checkpoint.on_damage=older goes on from step {steps[-1]}"
            raise ValueError(
                f"{self.directory / str(newest)} cannot be restored ({lost[newest]}). Nothing was "
                f"changed: {remedy}, or start anew with another --workdir"
            )
        if lost:
            self.set_aside(lost)
        return steps[-1] if steps else None

    def set_aside(self, lost: dict[int, str]) -> None:
        """Move damaged steps out of the way of the saves to come."""
        aside = self.directory.parent / "damaged"
        multihost_utils.sync_global_devices("all have read the damaged steps")
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            for step, reason in lost.items():
                print(f"step {step} is damaged ({reason}): moved to {aside}", flush=True)
                (self.directory / str(step)).rename(aside / f"{step}-{time.time_ns()}")
        multihost_utils.sync_global_devices("damaged steps set aside")
        self.manager.reload()

    def restore(self, step: int, abstract: Any) -> Any:
        """Restore the state of a step, placed as the abstract tree's shardings say.

        Raises:
          ValueError: the checkpoint cannot be read, is of another shape or of other data.
        """
        directory = self.directory / str(step)
        remedy = (
            "move that directory away to go on from the save before it, or start anew with another "
            "--workdir"
        )

        try:
            reason = self.damage(step) or _difference(directory / "state", abstract)
            if not reason and (reason := self.other_data(step)):
                remedy = "put that data set back, or use another --workdir"
            if not reason:
                args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
                return self.manager.restore(step, args=args).state
        except Exception as error:  # Orbax and tensorstore raise many kinds
            _raise_if_away(directory, error)
            reason = first_line(error)
        raise ValueError(
            f"{directory} cannot be restored ({reason}). Nothing was changed: {remedy}"
        )

    def other_data(self, step: int) -> str | None:
        """Describe how the data that a step was trained on differ from today's, if they do."""
        there, here = self.about_step(step)["data"], self.about["data"]
        changed = [
            f"{there[x]} {x} then, {here[x]} now"
            for x in sorted(here.keys() & there.keys())
            if here[x] != there[x]
        ]
        return f"the data set has changed: {', '.join(changed)}" if changed else None

    def changes(self, step: int) -> str:
        """Describe how this process's code and environment differ from those that saved a step."""
        saved = self.about_step(step)
        there = {"commit": saved["commit"], **saved.get("environment", {})}  # not in old saves
        here = {"commit": self.about["commit"], **self.about["environment"]}
        changed = [
            f"{name} ({there[name] or 'none'} then, {here[name] or 'none'} now)"
            for name in here.keys() & there.keys()
            if here[name] != there[name]
        ]
        return ", ".join(sorted(changed))

    def about_step(self, step: int) -> dict:
        """Read what was written beside a step's state: what made it, and on how many devices."""
        return json.loads((self.directory / str(step) / "about" / "metadata").read_text())

    def save(self, step: int, state: Any, force: bool = False) -> bool:
        """Save if it is due, or if forced and not there yet; return whether a save began."""
        if not force and not self.manager.should_save(step):
            return False
        if step in self.manager.all_steps():
            return False
        self.confirm()
        self.check_space(state)
        about = self.about | {"step": step}
        self.shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        with self.writing():
            began = self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
                ),
                force=force,
            )
        self.under_way = step if began else None
        return began

    def confirm(self) -> None:
        """Wait for the save under way, and open it in its final place.

        Raises:
          OSError: it could not be written, or what was written is not what was saved.
        """
        with self.writing():
            step, self.under_way = self.under_way, None
            self.manager.wait_until_finished()
            if step is not None and jax.process_index() == 0:
                self.require_saved(self.directory / str(step) / "state")

    def require_saved(self, directory: Path) -> None:
        """Raise OSError if a directory does not hold the arrays that were saved last."""
        manifest = "manifest.ocdbt"  # which leads to every array
        whole = (directory / manifest).is_file()
        different = _difference(directory, self.shapes) if whole else f"{manifest} is missing"
        if different:
            raise OSError(f"what was written cannot be read back: {different}")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn any failure in the background, most often a full disk, into one OSError."""
        try:
            yield
        except Exception as error:  # Orbax and tensorstore raise many kinds
            is_remote = paths.is_remote(self.directory)
            where = "the bucket" if is_remote else "the disk and its free space"
            failed = OSError(
                f"{self.directory}: a checkpoint could not be written ({first_line(error)}). Those "
                f"before it are intact: check {where}, and run the same command again"
            )
            failed.errno = storage_errno(error)
            raise failed from error

    def check_space(self, state: Any) -> None:
        """Raise OSError before a save that the disk cannot hold; a bucket holds any."""
        if paths.is_remote(self.directory):
            return
        needed = sum(x.nbytes for x in jax.tree.leaves(state))
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise OSError(
                f"{self.directory} has {free / 1e9:.2f} GB free and a checkpoint takes up to "
                f"{needed / 1e9:.2f} GB: free some space and run the same command again"
            )

    def close(self) -> None:
        """Wait for the save under way, and open it."""
        try:
            self.confirm()
        finally:
            with self.writing():
                self.manager.close()


def damage(checkpoint: Path) -> str | None:
    """Return what differs on disk from what was saved, None if nothing does.

    All processes call this, and the first one reads the files: many machines that read the same
    files would keep their shared disk busy for minutes.
    """
    return distributed.first_says(
        lambda: digests.damage(checkpoint / "about") or digests.damage(checkpoint / "state")
    )


def _difference(directory: Path, abstract: Any) -> str | None:
    """Describe the first array that differs between a saved tree and the wanted one, if any."""
    saved = ocp.tree.to_flat_dict(metadata(directory), sep=".")
    wanted = ocp.tree.to_flat_dict(abstract, sep=".")
    for name in sorted(saved.keys() | wanted.keys()):
        there, here = (
            f"{x.dtype}{list(x.shape)}" if (x := tree.get(name)) is not None else "none"
            for tree in (saved, wanted)
        )
        if there != here:
            return f"{name} is {there} there and {here} here"
    return None


def _raise_if_away(directory: Path, error: Exception) -> None:
    """Raise OSError if an error is not the checkpoint's fault: the bucket did not answer."""
    if paths.is_remote(directory) and (code := storage_errno(error)):
        said = f"{first_line(error)}: check the bucket, and run the same command again"
        raise OSError(code, said, str(directory)) from error


def metadata(directory: Path) -> dict:
    """Return the shapes and types of a saved tree, without its empty branches."""
    return ocp.PyTreeCheckpointHandler().metadata(paths.literal(directory)).tree


def load_params(
    workdir: Path, step: int | None = None
) -> tuple[dict, dict, ml_collections.ConfigDict, int]:
    """Load parameters and teacher of a run as NumPy arrays, without the optimizer.

    Returns:
      params {"encoder", "head"}, the teacher's tree, the run's configuration, the step.

    Raises:
      FileNotFoundError: no run there, or no checkpoint of that step.
      ValueError: the checkpoint is damaged.
      OSError: the bucket that it is on did not answer.
    """
    steps = steps_on_disk(workdir)
    if not steps:
        raise FileNotFoundError(
            f"{workdir} holds no checkpoint: give the --workdir of a run that has saved"
        )
    step = steps[-1] if step is None else step
    if step not in steps:
        raise FileNotFoundError(f"{workdir} has no checkpoint of step {step}: it has {steps}")

    directory = workdir.absolute() / "checkpoints" / str(step)
    if reason := damage(directory):
        raise ValueError(f"{directory} cannot be read ({reason}): it is damaged, use another step")
    try:
        about = json.loads((directory / "about" / "metadata").read_text())
        tree = _read_parts(directory / "state", ("params", "teacher"))
    except Exception as error:  # Orbax and tensorstore raise many kinds
        _raise_if_away(directory, error)
        raise ValueError(
            f"{directory} cannot be read ({first_line(error)}): it is damaged, use another step"
        ) from error

    config = ml_collections.ConfigDict(about["config"]).lock()
    return tree["params"], tree.get("teacher", {}), config, step


def _read_parts(directory: Path, names: tuple[str, ...]) -> dict:
    """Read these parts of a saved tree as NumPy arrays, without those that are empty."""
    saved = metadata(directory)
    wanted = {name: saved[name] for name in names if saved.get(name)}
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=kinds, partial_restore=True)
    # not through a Checkpointer, which would warn about what it does not use
    return ocp.PyTreeCheckpointHandler().restore(paths.literal(directory), args=args)
