"""What a study costs, by the planner."""

import json
from pathlib import Path

from launch import study
from tests.support.studies import PAPER


def plan_of(seconds: dict[str, float], fits: bool = True) -> list[dict]:
    """The part of a plan that costs are taken from."""
    plan = {"topology": "v5e:4x4", "devices": 16, "clips": 4, "seconds": seconds}
    return [plan | {"memory": {"fits": fits}}]


def test_costs_are_the_planners(tmp_path, capsys):
    arguments = ["--scale=base", "--cost", f"--models={','.join(PAPER[:8])}"]
    arguments.append(f"--workdir={tmp_path}")
    assert study.main([*arguments, "--dry-run"]) == 0
    commands = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [x[3] for x in commands] == [
        f"--config=configs/music2vec.py:{name}" for name in ("vanilla", "crop5s")
    ]
    (tmp_path / "cost").mkdir()
    outputs = [Path(x[-1].partition("=")[2] + ".json") for x in commands]
    for path in outputs:
        path.write_text(json.dumps(plan_of({"least": 0.5, "estimate": 2.0})))
        path.with_suffix(".commit").write_text("c0ffee")
    assert study.main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = {x.split(" | ")[0].strip("| "): [y.strip(" |") for y in x.split(" | ")] for x in printed}
    assert printed[-1].startswith("Planned at commit c0ffee; today's is ")
    # 400,000 updates of 112 clips, 4 a chip: 11.2 million chip steps
    low, high = (11.2e6 * x / 3600 for x in (0.5, 2.0))
    assert rows["music2vec-vanilla"][5] == f"{low:,.0f} to {high:,.0f}"
    assert rows["music2vec-vanilla"][4] == f"{low / 16:,.0f} to {high / 16:,.0f}"
    assert rows["music2vec-800k"][5] == f"{2 * low:,.0f} to {2 * high:,.0f}"
    assert rows["music2vec-span5"][-1] == "music2vec-vanilla"
    times = 1 + 2 + 5 + 752 / 112  # vanilla, twice the updates, five like it, crop5s
    assert rows["all 8"][5] == f"{low * times:,.0f} to {high * times:,.0f}"
    outputs[0].write_text(json.dumps(plan_of({"roofline": 0.5}, fits=False)))
    assert study.main(arguments) == 2
    assert "4 clips per chip do not fit v5e:4x4" in capsys.readouterr().err
    outputs[0].write_text(json.dumps(plan_of({"roofline": None})))
    assert study.main(arguments) == 2
    assert (
        "has no estimate of time for --topology=v5e:4x4: name a TPU or GPU"
        in capsys.readouterr().err
    )
