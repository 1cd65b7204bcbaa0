"""What a GPU's program of the base step holds, kept to recorded bounds: counts, never timings.

Collected where jax[cuda13] is installed (see conftest.py). The base models for a machine of eight
H100 as in musicssl/planning/README.md, 16 clips of 256 frames each, but for the number of their
layers, which are alike: one compiles in half a minute of processor time, twelve in one to two.
Where a change is meant, run `python -m tests.planning.test_counts_gpu` and put its figures into
RECORDED.
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
# On one GPU: GB moved, GFLOP of products and convolutions, kernels, MiB of temporaries, and MB
# exchanged.
RECORDED = {
    "data2vec": {
        "moved": 9.33,
        "done": 1679,
        "kernels": 440,
        "temporaries": 1280,
        "exchanged": 32,
    },
    "hubert": {"moved": 7.09, "done": 1540, "kernels": 415, "temporaries": 1045, "exchanged": 34},
}
SLACK = 1.03


def config(method: str) -> ml_collections.ConfigDict:
    module, variant, leaves = METHODS[method]
    made = module.get_config(variant)
    made.update_from_flattened_dict({"encoder.layers": 1} | leaves)
    return made


def planned(method: str) -> dict:
    topology.prepare(["h100:8"])
    return compilation.plan(config(method), topology.topology("h100:8"), "16")


def figures(plan: dict) -> dict[str, float]:
    work = plan["work"].values()
    return {
        "moved": round(sum(x["bytes"] for x in work) / 1e9, 2),
        "done": round(sum(x["operations"] for x in work) / 1e9),
        "kernels": sum(x["kernels"] for x in work),
        "temporaries": round(plan["memory"]["temp"] / 2**20),
        "exchanged": round(sum(x["bytes"] for x in plan["collectives"]) / 1e6),
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_base_step_costs_no_more_than_it_did(method):
    plan = planned(method)
    now = figures(plan)
    for name, bound in RECORDED[method].items():
        assert now[name] <= bound * SLACK, f"{name} of {method} is {now[name]}"
    assert {x["kind"] for x in plan["collectives"]} == {"all-reduce"}
    assert not any(x["activations"] for x in plan["collectives"])
    assert plan["memory"]["fits"] and plan["uncounted_kernels"] == 0


if __name__ == "__main__":
    for name in METHODS:
        print(name, json.dumps(figures(planned(name))), flush=True)
