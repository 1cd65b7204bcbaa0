"""What is known of GPUs."""

from types import SimpleNamespace

import pytest

from musicssl.planning.gpus import GPUS
from musicssl.training import flops


@pytest.mark.parametrize("name", GPUS)
def test_its_peak_is_that_of_its_units(name):
    """Of all cores at the fastest clock, operations of the matrix units: the data sheets agree.

    NVIDIA's architecture papers give a core 1024 fused multiply-adds a clock on A100, 2048 on H100
    and H200, 4096 on B200. H100 and B200 state their peaks at a slower clock.
    """
    gpu = GPUS[name]
    peak = flops.peak(SimpleNamespace(device_kind=gpu.name))
    each = {"a100": 1024, "b200": 4096}.get(name, 2048)
    assert 0.9 < peak / (gpu.cores * each * 2 * gpu.hertz) <= 1.001


@pytest.mark.parametrize("name", GPUS)
def test_what_the_compiler_is_told(name):
    gpu = GPUS[name]
    assert gpu.target.count("{") == gpu.target.count("}") == 3
    assert f"device_memory_size: {gpu.memory}\n" in gpu.target
    assert f"memory_bandwidth: {gpu.bandwidth:.0f}\n" in gpu.target
    assert f"major: {gpu.capability} " in gpu.target
