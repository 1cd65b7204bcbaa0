"""The same run on one device, eight devices and two processes, of the main command."""

import errno
import hashlib
import itertools
import json
import os
import re
import signal
import socket
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from musicssl.runtime import distributed, sharding
from musicssl.runtime.workdir import steps_on_disk
from musicssl.training import step as step_lib
from tests.support import commands, runs

pytestmark = pytest.mark.slow

STEPS = 12
LEAVES = {
    "steps": STEPS,
    "log_every": 1,
    "checkpoint.every": STEPS,
    "encoder.ffn_width": 2048,  # times the width of 32: large enough to be sharded
}
SHARDED = {"mesh.fsdp": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("topologies")
    runs.write_clips(root / "data")
    return root


@pytest.fixture(scope="module")
def lines(root) -> dict[str, list[dict[str, float]]]:
    """What complete runs log, by topology."""
    found = {}
    for name, leaves, devices in (("one", {}, 1), ("eight", {}, 8), ("sharded", SHARDED, 8)):
        flags = one(root, name, leaves)[0]
        code, _, errors = commands.complete(flags, root / "cache", devices)
        assert code == 0, errors
        found[name] = runs.scalars(root / name)
    return found


def several(root: Path, name: str, leaves: dict | None = None) -> list[list[str]]:
    """The flags of each of two processes of a run."""
    port = socket.create_server(("localhost", 0)).getsockname()[1]
    flags = runs.flags(runs.MUSIC2VEC, root / name, root / "data", LEAVES | (leaves or {}))
    joint = [*flags, f"--coordinator=localhost:{port}", "--processes=2"]
    return [[*joint, f"--process={number}"] for number in range(2)]


def one(root: Path, name: str, leaves: dict | None = None) -> list[list[str]]:
    return [runs.flags(runs.MUSIC2VEC, root / name, root / "data", LEAVES | (leaves or {}))]


def launch(
    root: Path, flags: list[list[str]], devices: int, pause: float = 0
) -> list[commands.Process]:
    return [commands.start(one, root / "cache", devices, pause) for one in flags]


def end(processes: list[commands.Process], code: int = 0) -> None:
    """Wait for the processes."""
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [code] * len(said), said


def same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Masks exactly, losses to rounding."""
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    for line, other in zip(found, expected, strict=True):
        assert line["masked_fraction"] == other["masked_fraction"]
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)
        assert line["target_std"] == pytest.approx(other["target_std"], rel=1e-3)


def test_losses_do_not_depend_on_the_devices(lines):
    same(lines["eight"], lines["one"])
    same(lines["sharded"], lines["one"])
    losses = [line["loss"] for line in lines["one"]]
    assert min(abs(np.diff(losses))) > 1e-3  # the tolerance tells the steps apart


def test_there_is_something_to_shard():
    assert sharding.parameter_spec((32, LEAVES["encoder.ffn_width"]), 2) != P()


def test_a_run_goes_on_where_there_are_other_devices(root, lines):
    """Two processes of four devices, one of two, and two of four again, ended by SIGTERM."""
    stages = [(several(root, "moved", SHARDED), 4, 1), (one(root, "moved"), 2, 2)]
    before = 0
    for flags, devices, steps in stages:
        processes = launch(root, flags, devices, pause=0.4)
        said = (line for line in processes[0].stdout if line.startswith("step "))
        list(itertools.islice(said, steps))  # fewer, where it dies: then `end` says why
        processes[-1].send_signal(signal.SIGTERM)
        end(processes, code=75)
        step = steps_on_disk(root / "moved")[-1]
        assert before + steps <= step < STEPS
        before = step
    end(launch(root, several(root, "moved", SHARDED), 4))
    same(runs.scalars(root / "moved"), lines["one"])


def test_all_processes_refuse_a_disk_that_they_do_not_share(root, tmp_path):
    """Each has a folder of its own, where an equal configuration lies."""
    flags = several(root, "alone")
    flags = [[x.replace(str(root / "alone"), f"{tmp_path}/{i}") for x in flags[i]] for i in (0, 1)]
    processes = launch(root, flags, 1)
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    told = {x.replace(f"{tmp_path}/{i}", "WORKDIR") for i, x in enumerate(errors)}
    (line,) = told
    assert line.startswith("musicssl: process 1 of 2 cannot see what process 0 writes to WORK")
    assert line.count("\n") == 1


def digests(config, fsdp: int, devices: int) -> list[str]:
    """Hashes of two steps' audio and masks as every process sees them, on the command's path.

    In both orders of the data.
    """
    from musicssl import host

    mesh = sharding.make_mesh(fsdp, jax.devices()[:devices])
    prepare = jax.jit(lambda key, x: step_lib.prepare(config, key, x))
    found = []
    with jax.set_mesh(mesh):
        for order, step in itertools.product(("shuffled", "blocks"), (4, 5)):
            config.data.order = order
            audio = host.Batches(config, mesh).open(step)
            x = next(audio)
            batch = prepare(step_lib.streams(config.seed, step)["mask"], x)
            whole = multihost_utils.process_allgather((x, batch.mask), tiled=True)
            digest = hashlib.sha256()
            for array in jax.tree.leaves(whole):
                digest.update(f"{array.shape} {array.dtype}".encode() + np.asarray(array).tobytes())
            found.append(digest.hexdigest())
    return found


def claim_twice(folder: Path) -> None:
    """Print what the second claim of a folder is told."""
    from musicssl import host

    host.PATIENCE = 0.0
    with host.claimed(folder, "another one"):
        try:
            host.claimed(folder, "another one").__enter__()
        except ValueError as error:
            print("REFUSED", error, flush=True)


def compare_folders(data_dir: Path) -> None:
    """Print what all are told of a folder that each has of its own, and of one that all share."""
    own = data_dir / f"own-{jax.process_index()}"
    for folder in (own, data_dir):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").touch()  # the same on each
        try:
            distributed.check_shared(folder)
        except ValueError as error:
            print("REFUSED", str(error).replace(str(folder), "FOLDER"), flush=True)
        if jax.process_index() == 0:  # who removes it
            assert list(folder.glob(".token*")) == []
    looked = []
    answers = [distributed.first_says(lambda x=x: looked.append(x) or x) for x in ("lost", None)]
    assert answers == ["lost", None] and len(looked) == 2 * (jax.process_index() == 0)
    try:
        distributed.first_does(lambda: os.read(-1, 1))
    except ValueError as error:
        assert "Bad file descriptor" in str(error)

    def away() -> None:
        raise OSError(errno.ESTALE, "no longer there")

    with pytest.raises(OSError, match="no longer there") as stale:
        distributed.first_does(away)
    assert stale.value.errno == errno.ESTALE


def probe(data_dir: str, coordinator: str, process: str) -> None:
    """Print digests of the meshes that these devices make: span masks, then masks of copies."""
    from configs import music2vec, music2vec2

    configs = []
    for family, of_config in ((music2vec, runs.MUSIC2VEC), (music2vec2, runs.MUSIC2VEC2)):
        configs.append(family.get_config("demo"))
        leaves = runs.LEAVES | runs.OF_CONFIG[of_config] | LEAVES | {"data.data_dir": data_dir}
        configs[-1].update_from_flattened_dict(leaves)

    def both(fsdp: int, devices: int) -> list[str]:
        return [x for config in configs for x in digests(config, fsdp, devices)]

    if coordinator:
        jax.distributed.initialize(coordinator, 2, int(process))
        claim_twice(Path(data_dir) / "run")
        compare_folders(Path(data_dir))
        said = [distributed.all_say(yes) for yes in (True, jax.process_index() == 0)]
        assert said == [True, False]
        found = {f"2 processes fsdp={fsdp}": both(fsdp, 8) for fsdp in (1, 2)}
    else:
        meshes = ((1, 1), (1, 8), (2, 8), (8, 8))
        found = {f"{n} devices fsdp={fsdp}": both(fsdp, n) for fsdp, n in meshes}
    print("FOUND", json.dumps(found), flush=True)


def test_batches_and_masks_are_the_same_to_the_bit(root):
    port = socket.create_server(("localhost", 0)).getsockname()[1]
    at = f"localhost:{port}"
    cases = [("", "0", 8), (at, "0", 4), (at, "1", 4)]
    processes = [
        commands.Process(probe, str(root / "data"), coordinator, process, devices=devices)
        for coordinator, process, devices in cases
    ]
    found, refused = {}, set()
    for number, process in enumerate(processes):
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        seen = json.loads(re.search(r"FOUND (.*)", output).group(1))
        found |= {f"process {number}, {name}": value for name, value in seen.items()}
        refused |= set(re.findall(r"REFUSED .*", output))
    assert len(found) == 8
    assert {tuple(value) for value in found.values()} == {tuple(next(iter(found.values())))}
    assert len(set(next(iter(found.values())))) == 8  # one step or order is not another

    # A folder is of the whole job, and all processes are told alike of one that they cannot have.
    told, alone = sorted(refused, key=lambda line: "FOLDER" in line)
    assert alone == (
        "REFUSED process 1 of 2 cannot see what process 0 writes to FOLDER: use a --workdir "
        "that all machines share"
    )
    owner = f"is in use by process {processes[1].process.pid} on {socket.gethostname()} since 20"
    assert owner in told and told.endswith(": another one")


def test_a_copy_on_the_machine_gives_the_same_batches(root, tmp_path):
    from configs import music2vec
    from musicssl import host

    config = music2vec.get_config("demo")
    leaves = runs.LEAVES | runs.OF_CONFIG[runs.MUSIC2VEC] | {"data.data_dir": str(root / "data")}
    mesh, found = sharding.make_mesh(1, jax.devices()[:1]), []
    for mirror, order in itertools.product(("", str(tmp_path)), ("shuffled", "blocks")):
        config.update_from_flattened_dict(leaves | {"data.mirror": mirror, "data.order": order})
        found.append(np.asarray(next(host.Batches(config, mesh).open(3))))
    np.testing.assert_array_equal(found[:2], found[2:])
    assert (found[0] != found[1]).any() and list(tmp_path.rglob("*.tfrecord-*"))
