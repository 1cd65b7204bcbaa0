"""What is written down about stages: what made a product, and the attempts that came before.

<folder>/stages/NAME.json is of a stage that is complete: its command, the commit that the code was
at, when it began, how long it took. NAME.attempts beside it has a line for each attempt that has
not completed, so that a stage that was interrupted and went on tells of all that made it.
"""

import json
import time
from pathlib import Path
from typing import Any


def path_of(folder: Path, name: str) -> Path:
    return folder / "stages" / f"{name.replace('/', '-')}.json"


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """What was noted when the stage was complete, None where it was not run by this folder."""
    path = path_of(folder, name)
    return json.loads(path.read_text()) if path.exists() else None


def every(folder: Path) -> list[dict[str, Any]]:
    """What was noted of all complete stages."""
    return [json.loads(path.read_text()) for path in (folder / "stages").glob("*.json")]


class Attempt:
    """A command that is being run."""

    def __init__(self, folder: Path, name: str, command: tuple[str, ...], commit: str):
        self.path = path_of(folder, name)
        self.clock = time.monotonic()
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.told = {"stage": name, "command": list(command), "commit": commit, "began": began}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.note({"commit": commit})

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.clock

    @property
    def attempts(self) -> Path:
        return self.path.with_suffix(".attempts")

    def note(self, line: dict[str, Any]) -> None:
        with self.attempts.open("a") as file:
            file.write(json.dumps({"command": self.told["command"]} | line) + "\n")

    def failed(self, cpu_seconds: float) -> None:
        """Note an end without a product."""
        self.note({"seconds": self.seconds, "cpu_seconds": cpu_seconds})

    def complete(self, cpu_seconds: float) -> None:
        """Note what made the product: seconds of all attempts, and commits of earlier ones."""
        every = [json.loads(line) for line in self.attempts.read_text().splitlines()]
        lines = [x for x in every if x["command"] == self.told["command"]]
        spent = {
            name: round(now + sum(x.get(name, 0) for x in lines), 1)
            for name, now in (("seconds", self.seconds), ("cpu_seconds", cpu_seconds))
        }
        commits = dict.fromkeys(x["commit"] for x in lines if "commit" in x)
        earlier = [x for x in commits if x != self.told["commit"]]
        temporary = self.path.with_suffix(".tmp")
        told = self.told | spent | {"earlier_commits": earlier}
        temporary.write_text(json.dumps(told, indent=1) + "\n")
        temporary.rename(self.path)
        self.attempts.unlink()
