"""Plans as tables."""

import pytest

from musicssl.planning import report
from musicssl.planning.schema import Plan

GIB = 2**30
WORK = {
    name: dict(zip(("kernels", "bytes", "operations", "seconds", "memory_seconds"), x, strict=True))
    for name, x in {
        "ffn": (100, 2e9, 4e9, 6e-3, 1e-3),
        "optimizer": (200, 1e9, 0, 2e-3, 2e-3),
    }.items()
}


def gpu_plan(fits: bool = True) -> Plan:
    """A plan of two machines of GPUs, in round figures."""
    wanted = 20 * GIB if fits else 70 * GIB
    tried = [{"clips": 8, "bytes": wanted, "fits": fits}, {"clips": 40, "bytes": 0, "fits": False}]
    return {
        "config": "musichubert:k500",
        "topology": "h100:2x8",
        "devices": 16,
        "kind": "NVIDIA H100 80GB HBM3",
        "fsdp": 1,
        "clips": 8,
        "global_batch": 128,
        "crop_seconds": 29.9,
        "steps": 3600,
        "parameters": 95_000_000,
        "checkpoint_bytes": GIB,
        "memory": {
            "limit": 60 * GIB, "device": 80 * GIB, "fits": fits, "wanted": wanted,
            "parameters": GIB, "teacher": 0, "optimizer": 2 * GIB,
        },
        "flops": {"ffn": 5e9, "attention": 5e9},
        "peak_flops": 1e12,
        "predicting": [{"by": "musichubert:k500", "flops": 1e12, "predictions": 1e5}],
        "seconds": {
            "roofline": 5e-3, "least": 8e-3, "estimate": 20e-3, "launch": 9e-4, "exchange": 3e-3
        },
        "cycles": {},
        "work": WORK if fits else {},
        "uncounted_kernels": 0,
        "collectives": [{"kind": "all-reduce", "count": 4, "bytes": 190e6, "activations": []}],
        "feed": {"estimate": {"audio_seconds": 100.0, "bytes": 3.2e6, "cores": 0.5}},
        "reading": {
            "shuffled": {"bytes": 10e6, "reads": 150.0},
            "blocks": {"bytes": 12e6, "reads": 0.5},
        },
        "attempts": tried,
        "compile_seconds": 60.0,
    }  # fmt: skip


def test_the_table_of_a_gpu():
    text = report.markdown([gpu_plan()])
    row = next(line for line in text.splitlines() if line.startswith("| h100:2x8"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["h100:2x8", "16", "1", "8", "20.00 GiB of 60.00 GiB"]
    assert cells[5:9] == ["10", "8.0 to 20.0 ms", "25%", "0.0 to 0.0 h"]
    assert (
        "8 clips per GPU take 20.00 GiB of the 60.00 GiB that jax takes of a GPU's 80.00 GiB"
        in text
    )
    assert "40 clips take more" in text
    assert "| all-reduce | 4 | 190.0 | none |" in text
    assert "| ffn | 100 | 2.00 | 4.0 | 6.00 | 1.00 |" in text
    assert "| all | 300 | 3.00 | 4.0 | 8.00 | 3.00 |" in text
    assert "kernels takes another 0.90 ms" in text and "exchanges take 3.00 ms" in text
    assert "not known" not in text


def test_what_data_have_to_give_stands_beside_what_storage_gives():
    """Of a step of 8 to 20 ms: Filestore by its 104.86 MB/s, then by its reads; a bucket."""
    plan = gpu_plan()
    text = report.markdown([plan])
    assert (
        "| shuffled | 10.0 | 150.0 | 500 to 1,250 | 7,500 to 18,750 "
        "| 250 ms, 12.5 of the step | 30 ms, 1.5 of the step |"
    ) in text
    assert (
        "| blocks | 12.0 | 0.5 | 600 to 1,500 | 25 to 62 "
        "| 114 ms, 5.7 of the step | 0 ms, 0.0 of the step |"
    ) in text
    assert (
        "Filestore BASIC_HDD gives 105 MB/s and 600 reads/s; a bucket gives 5,000 reads/s" in text
    )
    plan = gpu_plan(fits=False)
    plan["seconds"] = {"roofline": None}
    text = report.markdown([plan])
    assert "| blocks | 12.0 | 0.5 | no estimate | no estimate | 114 ms | 0 ms |" in text


def test_kernels_that_tell_nothing_are_told():
    plan = gpu_plan()
    plan["uncounted_kernels"] = 3
    assert "The operations of 3 kernels are not known" in report.markdown([plan])


def test_a_gpu_that_is_too_small():
    text = report.markdown([gpu_plan(fits=False)])
    assert "8 clips per GPU take 70.00 GiB, more than the 60.00 GiB" in text
    assert "**does not fit**" in text and "| ffn |" not in text


@pytest.mark.parametrize(
    "count, words", [(None, "unknown"), (2**20, "1.00 MiB"), (3 * GIB, "3.00 GiB")]
)
def test_bytes_in_words(count, words):
    assert report.size(count) == words


def test_an_hour_of_targets_takes_the_time_of_180000_predictions():
    plan = {
        "seconds": {"roofline": 1.0, "estimate": 4.0},
        "devices": 2,
        "peak_flops": 1e12,
        "predicting": [
            {"by": "ours", "flops": 3e12, "predictions": 90_000},
            {"by": "theirs", "flops": 1e12, "predictions": 10_000},
        ],
    }
    rows = report._predicting(plan)[2:]
    assert rows == [
        "| ours | 3.000 | 90,000 | 33.3 | 6.0 to 16.0 s |",
        "| theirs | 1.000 | 10,000 | 100.0 | 18.0 s |",
    ]
