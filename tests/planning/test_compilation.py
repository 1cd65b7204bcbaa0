"""The planner: its search for a batch, its refusals, and a plan of eight virtual devices.

Where their compilers are installed, test_compilation_tpu.py and test_compilation_gpu.py compile for
TPUs and GPUs as well.
"""

from types import SimpleNamespace

import jax
import ml_collections
import pytest
from jax.sharding import Mesh

from configs import music2vec, music2vec2, musichubert
from musicssl.planning import compilation
from musicssl.planning.compilation import BatchAttempt
from musicssl.planning.gpus import GPUS
from musicssl.planning.topology import Topology
from musicssl.training import flops
from tests.support import tiny

GIB = 2**30
MULTI = {"teacher.feature": "", "teacher.targets": "layer:random,onset", "teacher.layer": 1}


def compiler(limit: int, bytes_of, tells: bool = True):
    """A stand-in that accepts what fits, and the batches that it was asked for."""
    asked = []

    def attempt(clips: int) -> BatchAttempt:
        asked.append(clips)
        wanted = bytes_of(clips)
        fits = wanted <= limit
        return BatchAttempt(clips, wanted if fits or tells else None, object() if fits else None)

    return attempt, asked


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize(
    "bytes_of, attempts",
    [
        (lambda n: 2 * GIB + n * GIB // 9, 4),
        (lambda n: 2 * GIB + n * GIB // 2000, 9),
        (lambda n: 15 * GIB + n * GIB // 9, 5),
        (lambda n: 2 * GIB + n // 8 * 8 * GIB // 4, 8),  # in steps
        # a compiler that recomputes more, the nearer the limit
        (lambda n: int(2 * GIB + min(n, 50) * GIB / 4 + max(0, n - 50) * GIB / 90), 8),
        # as v5e's does with a base step, as far as was seen
        (lambda n: int(GIB * (min(2 + n / 4, 14.7 + n % 5 / 20) if n < 90 else n)), 15),
    ],
)
def test_the_largest_batch_is_accepted_and_the_next_refused(bytes_of, attempts, tells, unit):
    limit = int(15.75 * GIB)
    attempt, asked = compiler(limit, bytes_of, tells)
    tried = compilation.largest_batch(attempt, unit, limit, 2 * GIB)
    accepted = max(x.clips for x in tried if x.compiled)
    refused = min(x.clips for x in tried if not x.compiled)
    assert refused - accepted == unit and accepted % unit == 0
    assert bytes_of(accepted) <= limit < bytes_of(refused)
    assert len(asked) == len(set(asked)) <= (attempts if tells else 16)
    again = compilation.largest_batch(attempt, unit, limit, 2 * GIB, accepted // unit)
    assert again[0].clips == accepted and {accepted + unit} <= {x.clips for x in again}


def test_nothing_fits():
    attempt, asked = compiler(GIB, lambda n: 2 * GIB)
    assert [x.compiled for x in compilation.largest_batch(attempt, 1, GIB, GIB)] == [None] * 2
    assert asked == [8, 1]


def test_of_a_gpu_the_planner_tells_what_fits(monkeypatch):
    """A GPU's compiler refuses nothing: here it wants a GiB for each clip and four more."""

    def lower(config: ml_collections.ConfigDict, mesh: Mesh) -> SimpleNamespace:
        kinds = ("argument", "output", "alias", "generated_code")
        sizes = {f"{kind}_size_in_bytes": 0 for kind in kinds}
        wanted = SimpleNamespace(**sizes, temp_size_in_bytes=(4 + config.batch_size) * GIB)
        program = "ENTRY %main () -> f32[] {\n  ROOT %x = f32[] iota()\n}\n"
        compiled = SimpleNamespace(memory_analysis=lambda: wanted, as_text=lambda: program)
        return SimpleNamespace(compile=lambda options: given.append(options) or compiled)

    given: list[dict] = []
    monkeypatch.setattr(compilation, "lower", lower)
    monkeypatch.setattr(flops, "peak", lambda device: 989e12)
    place = Topology("h100:1", jax.devices()[:1], GPUS["h100"], 1, 1)
    plan = compilation.plan(tiny.config(), place, "auto:40")
    assert plan["clips"] == 55  # of 59.3 GiB
    assert plan["memory"]["fits"] and plan["memory"]["wanted"] == 59 * GIB
    assert 56 in [x["clips"] for x in plan["attempts"] if not x["fits"]]
    assert given[0] == {"xla_gpu_enable_triton_gemm": False}

    plan = compilation.plan(tiny.config(), place, "60")
    assert not plan["memory"]["fits"] and plan["memory"]["wanted"] == 64 * GIB
    assert plan["work"] == {} and "estimate" not in plan["seconds"]


@pytest.mark.parametrize(
    "batch, words", [("auto", "cpu:8: its amount of memory"), ("0", "give a number")]
)
def test_a_batch_that_cannot_be_searched_for(batch, words):
    with pytest.raises(ValueError, match=words):
        compilation.check_batch(batch, ["h100:8", "cpu:8"])
    compilation.check_batch("auto:4", ["h100:8", "v5e:4x4"])


def test_masks_of_equal_counts_follow_the_batch():
    config = music2vec.get_config()
    assert compilation.with_batch(config, 112).mask.equal_counts == 7
    assert compilation.with_batch(config, 64).mask.equal_counts == 1
    assert config.batch_size == 112
    assert compilation.with_batch(music2vec2.get_config(), 5).mask.copies == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, leaves",
    [
        (music2vec, {"data2vec.top_layers": 1}),
        (music2vec, {"data2vec.top_layers": 1, "accumulate": 2}),
        (music2vec2, {"data2vec.top_layers": 1, "accumulate": 2}),
        (musichubert, {}),
        (musichubert, {"teacher.feature": "layer", "teacher.layer": 1}),
        (musichubert, MULTI),
    ],
)
def test_every_kind_of_step_lowers(family, leaves):
    config = family.get_config("demo")
    config.update_from_flattened_dict(leaves | {"encoder.layers": 1})
    mesh = compilation.sharding.make_mesh(1, jax.devices()[:1])
    assert "optimizer" in compilation.lower(config, mesh).as_text(debug_info=True)
