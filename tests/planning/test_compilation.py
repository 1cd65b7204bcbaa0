"""The planner: its search for a batch, its refusals, and a plan of eight virtual devices.

Where libtpu is installed test_plan_tpu.py compiles for TPUs as well.
"""

import json
from types import SimpleNamespace

import jax
import pytest

from configs import music2vec, musichubert
from musicssl.planning import compilation, hlo, report, topology
from musicssl.planning.compilation import Attempt
from musicssl.training import flops, step
from tests.support import commands, tiny

GIB = 2**30


def compiler(limit: int, bytes_of, tells: bool = True):
    """A stand-in that accepts what fits, and the batches that it was asked for."""
    asked = []

    def attempt(clips: int) -> Attempt:
        asked.append(clips)
        wanted = bytes_of(clips)
        fits = wanted <= limit
        return Attempt(clips, wanted if fits or tells else None, object() if fits else None)

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


def test_masks_of_equal_counts_follow_the_batch():
    config = music2vec.get_config()
    assert compilation.with_batch(config, 112).mask.equal_counts == 7
    assert compilation.with_batch(config, 64).mask.equal_counts == 1
    assert config.batch_size == 112


@pytest.mark.parametrize(
    "family, leaves",
    [
        (music2vec, {"data2vec.top_layers": 1}),
        (music2vec, {"data2vec.top_layers": 1, "accumulate": 2}),
        (musichubert, {}),
        (musichubert, {"teacher.feature": "layer", "teacher.layer": 1}),
    ],
)
def test_every_kind_of_step_lowers(family, leaves):
    config = family.get_config("demo")
    config.update_from_flattened_dict(leaves | {"encoder.layers": 1})
    mesh = compilation.sharding.make_mesh(1, jax.devices()[:1])
    assert "optimizer" in compilation.lower(config, mesh).as_text(debug_info=True)


@pytest.mark.parametrize(
    "scope, part",
    [
        (
            "jit(step)/transpose(jvp(Encoder.contextualize))/layer_3/attention/q_proj/dot",
            "attention",
        ),
        ("jit(step)/jvp(Encoder.contextualize)/layer_3/feed_forward/mul", "ffn"),
        ("jit(step)/jvp(teacher)/Encoder.contextualize/layer_3/attention/dot", "teacher"),
        ("jit(step)/transpose(jvp(Encoder.stem))/stem_1/stem_norm_1/mul", "stem 1"),
        ("jit(step)/transpose(jvp(Encoder.stem))/add", "norms, residuals and the rest"),
        ("jit(step)/jvp(Encoder.contextualize)/positional/pos_conv_0/conv", "positional"),
        ("jit(step)/optimizer/mul", "optimizer"),
        ("", "copies"),
    ],
)
def test_parts_of_scopes(scope, part):
    assert report.part(scope) == part


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of python -m musicssl.plan."""
    process = commands.Process(commands.module, "musicssl.plan", *arguments)
    said = process.communicate()
    return process.returncode, *said


def test_eight_virtual_devices(tmp_path):
    """The same figures as the configuration gives by hand, and no activation on the move."""
    leaves = tiny.LEAVES | {
        "encoder.width": 128,
        "encoder.heads": 4,
        "encoder.ffn_width": 512,  # two matrices large enough to be sharded
        "mesh.fsdp": 2,
    }
    flags = [f"--config.{name}={value}" for name, value in leaves.items()]
    code, output, errors = run(
        "--config=configs/music2vec.py:demo", *flags, "--topology=cpu:8", f"--output={tmp_path}/p"
    )
    assert code == 0, errors[-3000:]
    (told,) = json.loads((tmp_path / "p.json").read_text())
    assert (tmp_path / "p.md").read_text() + "\n" == output
    config = tiny.config(leaves)
    assert (told["devices"], told["fsdp"], told["clips"]) == (8, 2, 2)
    assert sum(told["flops"].values()) == pytest.approx(flops.train_step(config) / 8)

    state = step.state_shapes(config)
    whole = report.stored(state.params)
    large = 4 * sum(x.size for x in jax.tree.leaves(state.params) if x.size >= 2**16)
    memory = told["memory"]
    assert memory["parameters"] == whole - large / 2 < whole
    assert told["checkpoint_bytes"] == report.stored(state)
    held = memory["parameters"] + memory["teacher"] + memory["optimizer"]
    assert 0 < memory["argument"] - held < 2e5  # step counters and two clips
    assert memory["fits"] and memory["limit"] is None and memory["temp"] > 1e6

    sent = {x["kind"]: x for x in told["collectives"]}
    assert sent["all-gather"]["bytes"] >= large
    assert sent["all-reduce"]["bytes"] > 0.5 * whole
    assert not any(x["activations"] for x in told["collectives"])
    assert "| cpu:8 | 8 | 2 | 2 |" in output and "no estimate" in output


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--topology=cpu:8"], "--config is missing: give a configuration file"),
        (
            ["--config=configs/music2vec.py", "--topology=v9:4x4"],
            "v9:4x4 is not known: use v4:4x4x4",
        ),
        (["--config=configs/music2vec.py", "--topology=cpu:8", "--batch=auto:9"], "give --batch=N"),
    ],
)
def test_refusals_are_one_line(arguments, reason):
    code, _, errors = run(*arguments)
    assert code == 2 and reason in errors
    assert "Traceback" not in errors


def test_gradients_cross_slices_by_the_network():
    devices = [SimpleNamespace(process_index=i // 4) for i in range(8)]
    chip = topology.CHIPS["v5e"]
    rows = [{"kind": "all-reduce", "bytes": 1e9}, {"kind": "all-gather", "bytes": 1e9}]
    one, two = (
        report.exchange(rows, topology.Topology("", devices, chip, slices)) for slices in (1, 2)
    )
    inside = 1e9 / (chip.links / 2)
    assert one == pytest.approx(3 * inside)
    assert two == pytest.approx(inside + 2e9 / (report.SLICE_LINKS / 4))


def test_kernels_are_entered_at_the_stated_share_of_peak():
    """460 operations at two a cycle, 23 % of that rate; one without a figure stays out."""
    cycles = {"attention": 100}
    kernels = [hlo.Kernel("jit(step)/layer_0/attention/call", 460), hlo.Kernel("x", None)]
    assert report.entered(cycles, kernels, 2.0) == 1000
    assert cycles == {"attention": 1100}
