"""The two wings and their floors: who may import whom."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import record_files

ROOT = Path(__file__).parent.parent
# A module imports only from floors below its own.
FLOORS = (
    "goodput "
    "audio masking seeding sharding feature_rows grouped_conv dropout optim digests torch_file "
    "distributed programs compiled topology gelu first_norm",
    "attention_kernel dense kmeans checkpoint stem baselines windows",
    "attention feature_files",
    "encoder",
    "data2vec hubert flops state_dict model_config",
    "step huggingface",
    "fairseq model_card plan_report",
    "pretrained plan beats metrics probe_grid published svg study_page curves",
    "train codebook export extract probe_search report study_tables study_commands",
    "tasks study_results study_figures",
    "labels study_report",
    "factors",
    "evaluate",
    "probe",
    "main benchmark",
)
COMMANDS = {"main", "probe", "benchmark"}  # they meet the host wing
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
HEAVY = ("tensorflow", "tensorflow_datasets", "clu", "torch", "transformers")
DEVICE = ("jax", "jaxlib", "flax", "optax", "orbax", "musicssl")
# Imports modules one after another where some packages are missing, and tells what is then loaded.
IMPORT_EACH = """
import importlib, json, sys
missing, names = (argument.split() for argument in sys.argv[1:3])

class Missing:
    def find_spec(self, name, *_):
        if name in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
seen = {}
for name in names:
    importlib.import_module(name)
    seen[name] = [loaded for loaded in sys.modules if "." not in loaded]
print("RESULT", json.dumps(seen), flush=True)
"""
READ = """
from data_pipelines import batches
dataset = batches.open_dataset("clips", sys.argv[3], "train")
stream = batches.iterate(dataset, seed=1, batch_size=64, samples=30000, threads=4)
assert next(stream)["audio"].any()
"""


def modules(folder: str) -> list[str]:
    """Dotted names of all modules below a folder of the repository."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def imported(path: Path, package: str = "musicssl") -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith(f"{package}.")}
    return found


def loaded_after_each(
    names: list[str], missing: tuple[str, ...] = (), then: str = "", *arguments: str
) -> dict[str, set[str]]:
    """Top-level packages in sys.modules after each import, all in one process, in that order.

    Args:
      then: what the process does next.
      arguments: for that, sys.argv[3:].
    """
    given = " ".join(missing), " ".join(names), *arguments
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH + then, *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.rpartition("RESULT")[2])
    return {name: set(packages) for name, packages in seen.items()}


def test_every_module_has_a_floor():
    names = {name.partition(".")[2] for name in modules("musicssl")} - {""}
    assert names - FLOOR.keys() == set(), "give them a floor in FLOORS"
    assert FLOOR.keys() - names == set(), "take them out of FLOORS"


@pytest.mark.parametrize("name", FLOOR)
def test_modules_import_from_lower_floors_alone(name):
    for other in imported(ROOT / "musicssl" / f"{name}.py"):
        assert FLOOR[other] < FLOOR[name], f"{name} imports {other}"


def test_the_import_reader_sees_all_spellings(tmp_path):
    source = "import musicssl.audio\nfrom musicssl import step as s\n"
    source += "def f():\n    from musicssl.encoder import Encoder\n    import numpy\n"
    (tmp_path / "x.py").write_text(source)
    assert imported(tmp_path / "x.py") == {"audio", "step", "encoder"}


def test_the_device_wing_loads_neither_tensorflow_nor_pytorch():
    names = [f"musicssl.{name}" for name in sorted(FLOOR, key=FLOOR.get) if name != "main"]
    loaded = loaded_after_each(names)
    for name, packages in loaded.items():
        heavy = packages & {*HEAVY, "data_pipelines"}
        assert not heavy, f"{name} loads {heavy}"
    assert {"jax", "flax", "optax", "orbax"} <= loaded[names[-1]]


def test_the_host_wing_runs_where_jax_is_not_installed(tmp_path):
    """TensorFlow imports jax of its own accord where it finds it, so it must not find it.

    The process ends while its threads read, and ends well.
    """
    clip = record_files.noise(np.random.default_rng(0), 60_000)
    record_files.write(tmp_path / "clips/16khz/1.0.0", {"train": [[clip] * 12, [clip] * 11]})
    names = modules("data_pipelines")
    loaded = loaded_after_each(names, DEVICE, READ, str(tmp_path))
    assert len(names) > 15 and "tensorflow_datasets" in loaded[names[-1]]
    with pytest.raises(AssertionError, match="No module named 'jax'"):
        loaded_after_each(["musicssl.audio"], missing=("jax",))


def test_the_wings_meet_in_the_commands_alone():
    paths = (ROOT / "musicssl").glob("*.py")
    assert {path.stem for path in paths if imported(path, "data_pipelines")} == COMMANDS
