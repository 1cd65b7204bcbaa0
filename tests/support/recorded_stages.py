"""Stages that write down that they ran; loads little, for tests that start processes."""

from pathlib import Path

from launch import stages
from launch.stages import Stage


class Recorded:
    """A folder of stages, their products and the log of what ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stage(self, name: str, needs: tuple = (), code: str = "", last: bool = False) -> Stage:
        product = self.folder / f"{name}.product"
        body = f"open({str(self.folder / 'ran')!r}, 'a').write('{name} ')\n{code}\n"
        body += f"open({str(product)!r}, 'w').close()"
        return Stage(name, ("python", "-c", body), product.exists, needs, last)

    def run(self, *each: Stage, jobs: int = 2) -> tuple[int, list[str]]:
        """The exit code, and the stages that ran."""
        log = self.folder / "ran"
        log.unlink(missing_ok=True)
        code = stages.run(each, self.folder / "study", jobs, lambda: "c0ffee")
        return code, log.read_text().split() if log.exists() else []
