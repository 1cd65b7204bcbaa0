"""The output of --help: a command's purpose, its flags and the configurations that it accepts."""

import ast
import importlib
import inspect
import io
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

CONFIGS = Path(__file__).parent.parent / "configs"
WIDTH = 34  # of the column of names


def text(values: flags.FlagValues) -> str:
    """Return the help of the command that runs in this process."""
    parts = [inspect.cleandoc(sys.modules["__main__"].__doc__ or ""), _flags(values)]
    if "config" in values:
        flag: Any = values["config"]  # a flag of ml_collections, which absl has no type for
        stems = list(families())
        if flag.default:
            stems = [Path(flag.config_filename).stem]
        parts += [_variants(stems), *(_leaves(stem) for stem in stems)]
    return "\n\n".join(parts)


def families() -> Iterator[str]:
    """Yield the names of the files in configs/ that training runs can use."""
    for path in sorted(CONFIGS.glob("*.py")):
        module = importlib.import_module(f"configs.{path.stem}")
        if hasattr(module, "VARIANTS") and "method" in module.get_config():
            yield path.stem


def _flags(values: flags.FlagValues) -> str:
    mine = (sys.argv[0], "__main__")
    rows = []
    for module, defined in values.flags_by_module_dict().items():
        if module in mine or module.startswith("musicssl"):
            rows += [(_spelt(flag), flag.help or "") for flag in defined if "." not in flag.name]
    return "Flags:\n" + _table(rows)


def _spelt(flag: flags.Flag) -> str:
    if flag.boolean:
        return f"--[no]{flag.name}"
    default = (flag.default_as_str or "").strip("'")
    return f"--{flag.name}={'' if flag.default is None else default}"


def _variants(stems: Iterable[str]) -> str:
    rows = []
    for stem in stems:
        names = list(importlib.import_module(f"configs.{stem}").VARIANTS)
        rows.append((f"configs/{stem}.py", f"{names[0]} by default, :" + ", :".join(names[1:])))
    return "Configurations and their variants, as in --config=music2vec:demo:\n" + _table(rows)


def _leaves(stem: str) -> str:
    config = importlib.import_module(f"configs.{stem}").get_config()
    said = comments("common") | {f"probe.{k}": v for k, v in comments("probe").items()}
    said |= comments(stem)
    rows = []
    for name, value in _flat(config):
        section = name.rpartition(".")[0]
        rows.append((f"--config.{name}={value}", said.get(name) or said.get(section, "")))
    return f"Leaves of configs/{stem}.py, with the values of its first variant:\n{_table(rows)}"


def _flat(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name in config:
        value = config[name]
        if isinstance(value, ml_collections.ConfigDict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def comments(stem: str) -> dict[str, str]:
    """Return the comment beside each leaf and section that a file in configs/ sets."""
    source = (CONFIGS / f"{stem}.py").read_text()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    beside = {x.start[0]: x.string.lstrip("# ") for x in tokens if x.type == tokenize.COMMENT}
    said: dict[str, str] = {}
    sections = {"config": ""}  # variables that stand for sections, and their prefixes
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign):
            continue
        leaves = [_leaf_name(x, sections) for x in node.targets]
        for leaf in filter(None, leaves):
            sections |= {x.id: f"{leaf}." for x in node.targets if isinstance(x, ast.Name)}
            said[leaf] = beside.get(node.end_lineno or 0, "")
    return {name: words for name, words in said.items() if words}


def _leaf_name(target: ast.expr, sections: dict[str, str]) -> str | None:
    """Return the leaf that an assignment's target names; None if it is not a leaf."""
    if not isinstance(target, ast.Attribute) or not isinstance(target.value, ast.Name):
        return None
    section = sections.get(target.value.id)
    return None if section is None else section + target.attr


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"  {name:{WIDTH}}  {words}".rstrip() for name, words in rows)
