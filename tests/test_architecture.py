"""Which package, room and command may import which, and what importing them loads.

data_pipelines/ (the host wing) never imports JAX, and musicssl/ (the device wing) meets it in
host.py alone, but for what both say of the machine. A folder of musicssl/ is a room; a module that
is a command is a door.
"""

import ast
import functools
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import record_files

ROOT = Path(__file__).parent.parent
# The rooms of musicssl/, floor by floor from the ground up; a module that is named here is a room
# of its own. A room imports only from floors below it. Other modules are doors, above all floors.
FLOORS = (
    "audio environment paths usage",
    "spectra command",
    "runtime",
    "model host",
    "exchange",
    "objectives features",
    "training probing",
    "planning study",
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
TESTED_WITH = {  # modules without a test file of their name, and the file that tests them
    "batches": "features/test_extract",
    "commands": "study/test_report",
    **dict.fromkeys(
        ["chunks", "flac", "kinds", "libsndfile", "mpeg", "ogg"], "data_pipelines/test_containers"
    ),
    "digests": "runtime/test_checkpoint",
    "gelu": "model/test_encoder",
    "labelled": "data_pipelines/test_mir_datasets",
    "labelled_records": "probing/test_session",
    "model_card": "test_export",
    "neighbours": "exchange/test_neighbours",
    "parts": "data_pipelines/test_containers",
    "plugin_source": "features/test_plugin",
    "paths": "data_pipelines/test_build",
    "page": "study/test_report",
    "pretrained": "test_export",
    "probe": "probing/test_session",
    **dict.fromkeys(
        ["hubert_torch", "mel_cnn", "mert_v1", "features_elsewhere"], "probing/test_examples"
    ),
    "record_index": "data_pipelines/test_records",
    "results": "study/test_report",
    "schema": "planning/test_report",
    "rows": "probing/test_evaluate",
    "search": "probing/test_evaluate",
    "source": "features/test_extract",
    "stored": "probing/test_examples",
    "stage_records": "launch/test_stages",
    "tables": "study/test_report",
    "usage": "test_command",
    "timbres": "composer/test_render",
    "workers": "data_pipelines/test_build",
    "writer": "test_main",
    **{
        f"{name}_dataset_builder": file
        for file, names in {
            "data_pipelines/test_mir_datasets": "emomusic giantsteps_key gtzan magnatagatune "
            "mtg_jamendo nsynth vocalset",
            "data_pipelines/test_music_folder": "music_folder",
            "data_pipelines/test_synth_music": "synth_music",
            "composer/test_polyphony": "synth_polyphony",
        }.items()
        for name in names.split()
    },
}
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
    """Dotted names of all modules below a folder of the repository.

    Programs in a folder of examples are nobody's modules: they stand for users' own files.
    """
    paths = sorted(x for x in (ROOT / folder).rglob("*.py") if x.parent.name != "examples")
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, anywhere in it, as it spells them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module or ''}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def graph(package: str) -> dict[str, set[str]]:
    """The modules of a package, and which of them each imports."""
    names = set(modules(package))
    return {name: {module_of(x, names) for x in imported(file_of(name))} - {""} for name in names}


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def module_of(name: str, modules: set[str]) -> str:
    """The module that a dotted name leads into: "musicssl.audio.mfcc" into "musicssl.audio"."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return "" if name == "musicssl" else name


def room_of(module: str) -> str:
    return module.split(".")[1]


def floor_of(module: str) -> int:
    return FLOOR.get(room_of(module), len(FLOORS))


def is_door(module: str) -> bool:
    return room_of(module) not in FLOOR


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


MODULES = [name for name in modules("musicssl") if name != "musicssl"]


def test_every_folder_is_a_room_on_a_floor():
    rooms = {path.parent.name for path in (ROOT / "musicssl").glob("*/__init__.py")}
    assert rooms - FLOOR.keys() == set(), "give them a floor in FLOORS"
    alone = {path.stem for path in (ROOT / "musicssl").glob("*.py")}
    assert FLOOR.keys() - rooms - alone == set(), "take them out of FLOORS"


def test_no_folder_holds_more_modules_than_a_reader_can_hold():
    for room in FLOOR:
        assert len(list((ROOT / "musicssl" / room).glob("*.py"))) <= 17, f"split {room}"


@pytest.mark.parametrize("folder", ["musicssl", "data_pipelines", "launch"])
def test_the_tests_of_a_module_are_found_by_its_name(folder):
    for path in (ROOT / folder).rglob("*.py"):
        name, room = path.stem, path.parent.name
        if name.startswith("__"):
            continue
        own = [
            f"test_{name}",
            f"{room}/test_{name}",
            f"{folder}/test_{name}",
            TESTED_WITH.get(name),
        ]
        there = [x for x in own if x and (ROOT / "tests" / f"{x}.py").exists()]
        assert there, f"{path} has no tests/{own[1]}.py, nor a place in TESTED_WITH"


@pytest.mark.parametrize("name", MODULES)
def test_a_room_imports_only_from_floors_below(name):
    for other in graph("musicssl")[name]:
        own = room_of(other) == room_of(name)
        assert own or floor_of(other) < floor_of(name), f"{name} imports {other}"


@pytest.mark.parametrize("package", ["musicssl", "data_pipelines"])
def test_no_imports_run_in_a_circle(package):
    list(graphlib.TopologicalSorter(graph(package)).static_order())


def test_no_door_imports_a_door():
    doors = [name for name in MODULES if is_door(name)]
    met = {(x, y) for x in doors for y in graph("musicssl")[x] if is_door(y)}
    assert met == set()


def test_the_import_reader_sees_all_spellings(tmp_path):
    source = "import musicssl.audio\nfrom musicssl.training import step as s\n"
    source += "def f():\n    from musicssl.model.encoder import Encoder\n    import numpy\n"
    (tmp_path / "x.py").write_text(source)
    names = imported(tmp_path / "x.py")
    assert {module_of(name, set(MODULES)) for name in names} == {
        *("musicssl.audio", "musicssl.training.step", "musicssl.model.encoder", ""),
    }


def test_the_device_wing_loads_neither_tensorflow_nor_pytorch():
    names = list(graphlib.TopologicalSorter(graph("musicssl")).static_order())
    loaded = loaded_after_each(names)
    for name, packages in loaded.items():
        heavy = packages & {*HEAVY}
        assert not heavy, f"{name} loads {heavy}"
    assert {"jax", "flax", "optax", "orbax"} <= loaded[names[-1]]


def test_the_host_wing_runs_where_jax_is_not_installed(tmp_path):
    """TensorFlow imports jax of its own accord where it finds it, so it must not find it.

    The process ends while its threads read, and ends well.
    """
    clip = record_files.noise(np.random.default_rng(0), 60_000)
    record_files.write(tmp_path / "clips/16khz/1.0.0", {"train": [[clip] * 12, [clip] * 11]})
    counts = "data_pipelines.counts"  # which commands read that have no other use for TensorFlow
    names = [counts, *(name for name in modules("data_pipelines") if name != counts)]
    loaded = loaded_after_each(names, DEVICE, READ, str(tmp_path))
    assert not loaded[counts] & {*HEAVY}
    assert len(names) > 15 and "tensorflow_datasets" in loaded[names[-1]]
    with pytest.raises(AssertionError, match="No module named 'jax'"):
        loaded_after_each(["musicssl.audio"], missing=("jax",))


def test_the_wings_meet_in_one_door():
    """What both say of the machine they have from one file, which needs nothing but Python."""
    shared = "data_pipelines.machine"
    meeting = {
        room_of(name)
        for name in MODULES
        if any(x.startswith("data_pipelines") and x != shared for x in imported(file_of(name)))
    }
    assert meeting == {"host"}
    needed = {x.partition(".")[0] for x in imported(file_of(shared))}
    assert needed <= sys.stdlib_module_names


def test_the_composer_imports_nothing_from_outside():
    for name, others in graph("data_pipelines").items():
        if name.startswith("data_pipelines.composer"):
            assert all(other.startswith("data_pipelines.composer") for other in others), name
