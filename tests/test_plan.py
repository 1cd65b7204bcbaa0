"""The command that plans a run."""

import json

import jax
import pytest

from musicssl import plan
from musicssl.planning import costs
from musicssl.training import flops, step
from tests.support import commands, tiny


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
    whole = costs.stored(state.params)
    large = 4 * sum(x.size for x in jax.tree.leaves(state.params) if x.size >= 2**16)
    memory = told["memory"]
    assert memory["parameters"] == whole - large / 2 < whole
    assert told["checkpoint_bytes"] == costs.stored(state)
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
        (["--topology=cpu:8"], "--config is missing: give a configuration"),
        (
            ["--config=configs/music2vec.py", "--topology=v9:4x4"],
            "v9:4x4 is not known: use v4:4x4x4",
        ),
        (["--config=configs/music2vec.py", "--topology=cpu:8", "--batch=auto:9"], "give --batch=N"),
        (["--config=configs/music2vec.py"], "--topology is missing: give what to plan for"),
        (["--config=configs/music2vec.py", "--evaluate"], "give --config=configs/probe.py"),
        (["--config=configs/probe.py:ridge", "--evaluate"], "plans probes that are trained"),
    ],
)
def test_refusals_are_one_line(arguments, reason):
    code, _, errors = run(*arguments)
    assert code == 2 and reason in errors
    assert "Traceback" not in errors


def test_a_plan_that_cannot_be_written_is_printed_all_the_same(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as end:
        plan._write(str(tmp_path / "file/p"), {}, "the plan")
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == "the plan\n"
    assert said.err.startswith("musicssl: ") and said.err.count("\n") == 1
