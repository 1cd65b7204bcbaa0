"""Write the report of a study: python -m musicssl.study_report --workdir=runs/study

Writes <workdir>/report/index.html, one file that opens without a network, and results.json beside
it, which holds every number on the page. Exit codes: 0 written, 2 there is no study in the workdir.
"""

from pathlib import Path

from absl import flags

from musicssl import command, paths
from musicssl.study import report


def define_flags() -> None:
    command.define_path("workdir", "the workdir of launch/study.py", kind=paths.local)


def main(argv: list[str]) -> None:
    del argv
    with command.refusing():
        print(report.write(Path(flags.FLAGS.workdir)))


if __name__ == "__main__":
    command.run(main, define_flags, required=["workdir"])
