"""Tracks a run in Weights & Biases, in addition to TensorBoard: `--config.tracker=wandb`.

Only this option needs the package. A run keeps its id across restarts, on any machine: the id is in
<workdir>/tracker.json. WANDB_MODE=offline is for machines without a network; each life of the run
then leaves a folder <workdir>/wandb/offline-run-* for `wandb sync`. WANDB_PROJECT names another
project.
"""

import importlib.util
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from musicssl import paths
from musicssl.command import first_line, say

TRACKERS = ("", "wandb")
_PATIENCE = 30.0  # seconds to wait for Weights & Biases before a life is tracked offline
_PROJECT = "musicssl"


def check(name: str) -> None:
    """Raise ValueError if a tracker is unknown or its package is not installed."""
    if name not in TRACKERS:
        raise ValueError(f"tracker is {name!r}: use 'wandb', or '' for TensorBoard alone")
    if name and importlib.util.find_spec(name) is None:
        raise ValueError(f"tracker is {name!r}, which is not installed: pip install {name}")


class Tracker:
    """A tracked run. One process of a job opens it.

    Raises:
      ValueError: nobody is logged in to Weights & Biases on this machine.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path):
        import wandb

        settings = {"console": "off", "silent": True, "init_timeout": _PATIENCE}
        given: dict[str, Any] = {
            "id": _run_id(workdir),
            "resume": "allow",  # the same id continues the same run
            "project": wandb.Settings().project or _PROJECT,
            "name": workdir.name,
            "config": json.loads(config.to_json()),
            "dir": None if "://" in str(workdir) else str(workdir),
            "settings": wandb.Settings(**settings),
        }
        self.is_lost = False
        try:
            self.run = wandb.init(**given)
        except wandb.errors.UsageError as error:
            raise ValueError(
                f"tracker is 'wandb': {first_line(error).rstrip('.')}, or set WANDB_MODE=offline "
                "and send the run later with `wandb sync`"
            ) from error
        except wandb.errors.Error as error:  # its servers may be down, which should not end the run
            say(
                f"Weights & Biases cannot be reached ({first_line(error)}): the run is tracked "
                "offline"
            )
            self.run = wandb.init(**given, mode="offline")
        where = Path(self.run.dir).parent if self.run.offline else self.run.url
        say(f"Weights & Biases tracks this as run {given['id']}: {where}")

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Write the scalars of a step.

        Steps that are repeated after a restart were written before, with the same losses.
        """
        if not self.is_lost and step >= self.run.step:
            self._try(lambda: self.run.log(scalars, step=step))

    def close(self) -> None:
        """Wait until everything is sent, or written to disk if there is no network."""
        if not self.is_lost:
            self._try(self.run.finish)

    def _try(self, work: Callable[[], None]) -> None:
        """Call the package, whose own process may have ended; that does not end the run."""
        try:
            work()
        except Exception as error:  # of many kinds
            self.is_lost = True
            say(f"tracking has stopped until the next start ({first_line(error)})")


def _run_id(workdir: Path) -> str:
    """Return the id of the workdir's run, or a new one if it has none."""
    path = workdir / "tracker.json"
    try:
        return str(json.loads(path.read_text())["wandb"])
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} names no run: delete it to begin a new one") from None
    made = secrets.token_hex(4)
    paths.write(path, f"{json.dumps({'wandb': made})}\n".encode())
    return made
