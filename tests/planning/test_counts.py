"""What the compiler counts in small steps, held to recorded bounds: counts, never timings.

A change that makes the step dearer fails here. Where that is meant, or a new XLA counts otherwise,
run `python -m tests.planning.test_counts` and put its figures into RECORDED.
"""

import json
from collections.abc import Sequence

import jax
import ml_collections
import pytest

from configs import musichubert
from musicssl.planning import compilation, hlo
from musicssl.runtime import sharding
from musicssl.training import step
from tests.support import tiny

DEVICES = {"data2vec": (1, 2, 8), "data2vec2": (1, 8), "hubert": (1, 8)}
CLIPS = 4  # on each device
# On one device: operations, bytes read and written, bytes of temporaries; on eight: exchanges.
RECORDED = {
    "data2vec": {"flops": 2.666e8, "bytes": 1.119e8, "temporaries": 1.62e7, "exchanges": 2},
    "data2vec2": {"flops": 2.877e8, "bytes": 1.174e8, "temporaries": 1.64e7, "exchanges": 2},
    "hubert": {"flops": 3.683e8, "bytes": 7.88e7, "temporaries": 9.39e6, "exchanges": 2},
}
SLACK = {"flops": 1.02, "bytes": 1.1, "temporaries": 1.1, "exchanges": 1.0}


def config(method: str, devices: int) -> ml_collections.ConfigDict:
    if method != "hubert":
        made = tiny.config() if method == "data2vec" else tiny.copies_config()
    else:
        made = musichubert.get_config("demo")
        shared = {x: y for x, y in tiny.LEAVES.items() if x.split(".")[0] in ("data", "encoder")}
        made.update_from_flattened_dict(shared | {"encoder.pos_conv_depth": 0})
    made.batch_size = CLIPS * devices
    if "equal_counts" in made.mask:
        made.mask.equal_counts = 1
    return made


def counts(method: str) -> dict[str, dict[str, object]]:
    """What one device's program holds, by the number of devices that share the batch."""
    sharding.SMALLEST_SHARDED = 512
    counts_by_devices = {}
    for devices in DEVICES[method]:
        mesh = sharding.make_mesh(1, jax.devices()[:devices])
        program = compilation.lower(config(method, devices), mesh).compile()
        cost, memory = program.cost_analysis(), program.memory_analysis()
        moved = hlo.collectives(program.as_text())
        counts_by_devices[devices] = {
            "flops": cost["flops"],
            "bytes": cost["bytes accessed"],
            "temporaries": memory.temp_size_in_bytes,
            "exchanges": len(moved),
            "kinds": sorted({x.kind for x in moved}),
            "shapes": sorted({shape for x in moved for shape in x.shapes}),
        }
    return counts_by_devices


@pytest.fixture(scope="module", params=DEVICES)
def counted(request) -> tuple[str, dict[str, dict[str, object]]]:
    return request.param, tiny.on_eight_devices(counts, request.param)


def test_a_step_costs_no_more_than_it_did(counted):
    method, counts_by_devices = counted
    now = recorded(counts_by_devices)
    for name, bound in RECORDED[method].items():
        assert now[name] <= bound * SLACK[name], f"{name} of {method} is {now[name]:.4g}"


def test_work_of_a_device_does_not_grow_with_their_number(counted):
    method, counts_by_devices = counted
    operations = [counts_by_devices[str(n)]["flops"] for n in DEVICES[method]]
    assert operations == [pytest.approx(operations[0], rel=0.02)] * len(operations)


def test_devices_exchange_gradients_and_metrics_alone(counted):
    method, counts_by_devices = counted
    assert counts_by_devices["1"]["kinds"] == []
    shapes = step.state_shapes(config(method, 8))
    known = {longer(x.shape) for x in jax.tree.leaves(shapes.params)} | {()}
    if method == "hubert":
        known.add((config(method, 8).teacher.clusters,))  # how often each label was seen
    for devices in DEVICES[method][1:]:
        assert counts_by_devices[str(devices)]["kinds"] == ["all-reduce"]
        assert {longer(x) for x in counts_by_devices[str(devices)]["shapes"]} <= known


def longer(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes that are longer than one, in order of length: a layout may turn them."""
    return tuple(sorted(n for n in shape if n > 1))


def recorded(counts_by_devices: dict[str, dict[str, object]]) -> dict[str, object]:
    one = {name: counts_by_devices["1"][name] for name in ("flops", "bytes", "temporaries")}
    return one | {"exchanges": counts_by_devices["8"]["exchanges"]}


if __name__ == "__main__":
    for name in RECORDED:
        print(name, json.dumps(recorded(tiny.on_eight_devices(counts, name))))
