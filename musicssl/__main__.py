"""List the commands: python -m musicssl; run one: python -m musicssl main --config=music2vec:demo

The script `musicssl COMMAND`, which comes with the installed package, does the same.
"""

import ast
import runpy
import sys

from data_pipelines import machine
from musicssl import paths

MODULES = {
    "build": "data_pipelines.build",
    **{
        name: f"musicssl.{name}"
        for name in ("main", "probe", "export", "plan", "benchmark", "study_report")
    },
}


def listing() -> str:
    """Return a line for each command: how it is called, and how its docstring begins."""
    lines = []
    for name, module in MODULES.items():
        path = paths.PRODUCT / f"{module.replace('.', '/')}.py"
        said = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or name).splitlines()[0]
        lines.append(f"python -m {module:21}  {said.partition(': python')[0].rstrip('.')}")
    last = "`musicssl main` is the same as python -m musicssl.main. Each command has --help."
    return "\n".join([*lines, last])


def main() -> None:
    """Run the command that the first argument names, or list all."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-help", "-h"):
        machine.keep_streams()
        print(listing())
    elif name in MODULES:
        del sys.argv[1]
        runpy.run_module(MODULES[name], run_name="__main__", alter_sys=True)
    else:
        print(f"musicssl: there is no command {name}: use {', '.join(MODULES)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
