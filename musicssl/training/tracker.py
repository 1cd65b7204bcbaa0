"""A run in Weights & Biases, beside TensorBoard: `--config.tracker=wandb`.

The package is asked for only there. A run keeps its id over restarts, on whatever machines: it is
in <workdir>/tracker.json. WANDB_MODE=offline is for machines without a network, of which each life
leaves a folder <workdir>/wandb/offline-run-* for `wandb sync`; WANDB_PROJECT names another project.
"""

import importlib.util
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from musicssl.command import first_line, say

TRACKERS = ("", "wandb")
_PATIENCE = 30.0  # seconds in which Weights & Biases has to answer before a life is kept offline
_PROJECT = "musicssl"


def check(name: str) -> None:
    """Raise ValueError where a tracker is not known, or its package not installed."""
    if name not in TRACKERS:
        raise ValueError(f"tracker is {name!r}: use 'wandb', or '' for TensorBoard alone")
    if name and importlib.util.find_spec(name) is None:
        raise ValueError(f"tracker is {name!r}, which is not installed: pip install {name}")


class Tracker:
    """A run that is tracked. One process of a job opens it.

    Raises:
      ValueError: Weights & Biases knows nobody here, who could not log in later either.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path):
        import wandb

        settings = {"console": "off", "silent": True, "init_timeout": _PATIENCE}
        given: dict[str, Any] = {
            "id": _run_id(workdir),
            "resume": "allow",  # the same id goes on with the same run
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
                "and send the run later by `wandb sync`"
            ) from error
        except wandb.errors.Error as error:  # its servers may be away: that ends no run
            say(f"nothing is sent to Weights & Biases ({first_line(error)}): kept offline")
            self.run = wandb.init(**given, mode="offline")
        where = Path(self.run.dir).parent if self.run.offline else self.run.url
        say(f"tracked as run {given['id']} by Weights & Biases: {where}")

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Write the scalars of a step.

        Steps that are taken again after a restart are there: they have the same losses.
        """
        if not self.is_lost and step >= self.run.step:
            self._try(lambda: self.run.log(scalars, step=step))

    def close(self) -> None:
        """Wait until all is sent, or written where there is no network."""
        if not self.is_lost:
            self._try(self.run.finish)

    def _try(self, work: Callable[[], None]) -> None:
        """Do what needs the package's own process; a run does not end where that has ended."""
        try:
            work()
        except Exception as error:  # of many kinds
            self.is_lost = True
            say(f"this life is tracked no further ({first_line(error)})")


def _run_id(workdir: Path) -> str:
    """Return the id of the workdir's run, a new one where it has none."""
    path = workdir / "tracker.json"
    try:
        return str(json.loads(path.read_text())["wandb"])
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} names no run: delete it, and a new one begins") from None
    made = secrets.token_hex(4)
    path.write_text(json.dumps({"wandb": made}) + "\n")
    return made
