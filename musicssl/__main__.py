"""List the commands: python -m musicssl"""

import ast
from pathlib import Path

COMMANDS = ("main", "probe", "export", "plan", "benchmark", "study_report")


def listing() -> str:
    """Return a line for each command: how it is called, and what its docstring says first."""
    lines = []
    for name in COMMANDS:
        tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text())
        first = (
            (ast.get_docstring(tree) or name).splitlines()[0].partition(": python")[0].rstrip(".")
        )
        lines.append(f"python -m musicssl.{name:14}{first}")
    return "\n".join([*lines, "Each tells more with --help."])


if __name__ == "__main__":
    print(listing())
