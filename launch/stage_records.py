"""The records of stages: what made a product, and the earlier attempts.

<folder>/stages/NAME.json is written when a stage is complete. It holds the stage's command, the
commit of the code, when it began and how long it took. NAME.attempts beside it has lines for each
attempt that was not completed, so that the record of an interrupted stage covers all attempts.
"""

import json
import time
from pathlib import Path
from typing import Any


def path_of(folder: Path, name: str) -> Path:
    """Return the path of a complete stage's record."""
    return folder / "stages" / f"{name.replace('/', '-')}.json"


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the record of a complete stage; None if it was not run in this folder."""
    path = path_of(folder, name)
    return json.loads(path.read_text()) if path.exists() else None


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Return the records of all complete stages."""
    return [json.loads(path.read_text()) for path in (folder / "stages").glob("*.json")]


class StageAttempt:
    """A running command and its record."""

    def __init__(self, folder: Path, name: str, command: tuple[str, ...], commit: str):
        self.path = path_of(folder, name)
        self.clock = time.monotonic()
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.record = {"stage": name, "command": list(command), "commit": commit, "began": began}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._note({"commit": commit})

    @property
    def seconds(self) -> float:
        """The time since the attempt began."""
        return time.monotonic() - self.clock

    @property
    def _attempts(self) -> Path:
        return self.path.with_suffix(".attempts")

    def _note(self, line: dict[str, Any]) -> None:
        with self._attempts.open("a") as file:
            file.write(json.dumps({"command": self.record["command"]} | line) + "\n")

    def failed(self, cpu_seconds: float) -> None:
        """Note that the attempt ended without a product."""
        self._note({"seconds": self.seconds, "cpu_seconds": cpu_seconds})

    def complete(self, cpu_seconds: float) -> None:
        """Note what made the product: the seconds of all attempts, the commits of earlier ones."""
        lines = [json.loads(line) for line in self._attempts.read_text().splitlines()]
        lines = [line for line in lines if line["command"] == self.record["command"]]

        # The total time of the attempts, and their commits.
        spent = {}
        for name, now in (("seconds", self.seconds), ("cpu_seconds", cpu_seconds)):
            spent[name] = round(now + sum(line.get(name, 0) for line in lines), 1)
        commits = dict.fromkeys(line["commit"] for line in lines if "commit" in line)
        earlier = [commit for commit in commits if commit != self.record["commit"]]

        temporary = self.path.with_suffix(".tmp")
        record = self.record | spent | {"earlier_commits": earlier}
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        temporary.rename(self.path)
        self._attempts.unlink()
