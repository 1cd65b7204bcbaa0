"""What the TPU's compiler counts in the base step, held to recorded bounds: never timings.

Collected where libtpu is installed (see conftest.py). The base models for 16 chips of v5e as in
musicssl/planning/README.md, 16 clips of 256 frames each and the state in shards, but for the number
of their layers, which are alike: one compiles in two to four minutes of processor time, twelve in
five to seven. Where a change is meant, run `python -m tests.planning.test_counts_tpu` and put its
figures into RECORDED.
"""

import json

import ml_collections
import pytest

from configs import music2vec, musichubert
from musicssl.planning import compilation, topology

METHODS = {
    "data2vec": (music2vec, "crop5s", {"data2vec.top_layers": 1}),
    "hubert": (musichubert, "k500", {"data.crop_frames": 256}),
}
# Millions of cycles by the compiler's estimate; of one chip temporaries in MiB, MB exchanged.
RECORDED = {
    "data2vec": {"cycles": 28.45, "stem": 19.11, "temporaries": 1472, "exchanged": 77},
    "hubert": {"cycles": 22.89, "stem": 15.67, "temporaries": 1199, "exchanged": 77},
}
SLACK = 1.03


def config(method: str) -> ml_collections.ConfigDict:
    module, variant, leaves = METHODS[method]
    made = module.get_config(variant)
    made.update_from_flattened_dict({"encoder.layers": 1, "mesh.fsdp": 16} | leaves)
    return made


def planned(method: str) -> dict:
    topology.prepare(["v5e:4x4"])
    return compilation.plan(config(method), topology.topology("v5e:4x4"), "16")


def figures(plan: dict) -> dict[str, float]:
    cycles = plan["cycles"]
    stem = sum(n for name, n in cycles.items() if name.startswith("stem"))
    return {
        "cycles": round(sum(cycles.values()) / 1e6, 2),
        "stem": round(stem / 1e6, 2),
        "temporaries": round(plan["memory"]["temp"] / 2**20),
        "exchanged": round(sum(x["bytes"] for x in plan["collectives"]) / 1e6),
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_base_step_costs_no_more_than_it_did(method):
    plan = planned(method)
    now = figures(plan)
    for name, bound in RECORDED[method].items():
        assert now[name] <= bound * SLACK, f"{name} of {method} is {now[name]}"
    # products that XLA takes apart to overlap them with exchanges would be passed on in pieces
    assert {x["kind"] for x in plan["collectives"]} == {"all-gather", "all-reduce"}
    assert not any(x["activations"] for x in plan["collectives"])
    assert plan["memory"]["fits"] and plan["uncounted_kernels"] == 0


if __name__ == "__main__":
    for name in METHODS:
        print(name, json.dumps(figures(planned(name))), flush=True)
