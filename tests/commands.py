"""The main command in processes forked from one that has its imports done: seconds less each."""

import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

from tests import runs


class Commands:
    """Runs commands, one after another."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.commands"],
            cwd=runs.ROOT,
            env=runs.environment(folder / "cache"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, arguments: list[str], devices: int = 1) -> tuple[int, str, str]:
        """Exit code, output and errors of `python -m musicssl.main` with these arguments."""
        paths = [self.folder / name for name in ("output", "errors")]
        self.server.stdin.write(json.dumps([devices, *map(str, paths), *arguments]) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        return code, *(path.read_text() for path in paths)

    def close(self) -> None:
        self.server.stdin.close()
        assert self.server.wait(timeout=60) == 0


def serve() -> None:
    """Fork a process for each line of stdin; print its exit code."""
    for module in ("clu.metric_writers", "data_pipelines.batches", "musicssl.codebook"):
        importlib.import_module(module)  # these are what takes long
    for line in sys.stdin:
        devices, output, errors, *command = json.loads(line)
        child = os.fork()
        if not child:
            for descriptor, path in ((1, output), (2, errors)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
            sys.argv = ["musicssl.main", *command]
            runpy.run_module("musicssl.main", run_name="__main__", alter_sys=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
