"""GPUs for which a step can be compiled without having one, as XLA and NVIDIA describe them.

What the compiler has to know about a device is in openxla/xla's
xla/backends/gpu/target_config/specs (h100_sxm, h200, a100_sxm_80, b200), which jax's wheels do not
contain. Rates of links are from NVIDIA's data sheets of the GPUs and of the DGX machines they are
in.
"""

from typing import NamedTuple

MOST = 8  # GPUs in one machine
# The share of a GPU's memory that jax takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION sets another
# (docs.jax.dev, "GPU memory allocation").
MEMORY_SHARE = 0.75
# The time of the shortest kernel in a sequence, including its start: NVIDIA measured 3.4 to 3.8
# microseconds for a kernel with 2.9 microseconds of work (developer.nvidia.com/blog/cuda-graphs).
LAUNCH_SECONDS = 3e-6


class Gpu(NamedTuple):
    """A kind of GPU.

    name: jax's name of the device. memory: in bytes. bandwidth, links, network: bytes per second of
    the memory, of all links to the machine's other GPUs, and of the GPU's share of the machine's
    network adapters, in each direction. capability: the major number of its CUDA compute
    capability. accelerated: whether that has instructions which later GPUs lack. cores: how many.
    units: of a core, for float32. hertz: of the fastest clock. l2: bytes of the cache. shared,
    block: bytes of shared memory that a core has, and that one block may take.
    """

    name: str
    memory: int
    bandwidth: float
    links: float
    network: float
    capability: int
    accelerated: bool
    cores: int
    units: int
    hertz: float
    l2: int
    shared: int
    block: int

    @property
    def target(self) -> str:
        """The description that XLA compiles for: a GpuTargetConfigProto as text."""
        features = "ACCELERATED_FEATURES" if self.accelerated else "NONE"
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.name}"
            dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            gpu_device_info {{
              cuda_compute_capability {{ major: {self.capability} feature_extension: {features} }}
              device_memory_size: {self.memory}
              memory_bandwidth: {self.bandwidth:.0f}
              core_count: {self.cores}
              fpus_per_core: {self.units}
              clock_rate_ghz: {self.hertz / 1e9}
              l2_cache_size: {self.l2}
              shared_memory_per_core: {self.shared}
              shared_memory_per_block: 49152
              shared_memory_per_block_optin: {self.block}
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              threads_per_warp: 32
              threads_per_block_limit: 1024
              threads_per_core_limit: 2048
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
            }}
        """


_H100 = Gpu(
    name="NVIDIA H100 80GB HBM3",
    memory=84_942_979_072,
    bandwidth=3352.32e9,
    links=900e9,
    network=50e9,
    capability=9,
    accelerated=True,
    cores=132,
    units=128,
    hertz=1.98e9,
    l2=52_428_800,
    shared=233_472,
    block=232_448,
)
GPUS = {
    "a100": Gpu(
        name="NVIDIA A100-SXM4-80GB",
        memory=85_100_068_864,
        bandwidth=2039.04e9,
        links=600e9,
        network=25e9,
        capability=8,
        accelerated=False,
        cores=108,
        units=64,
        hertz=1.41e9,
        l2=41_943_040,
        shared=167_936,
        block=166_912,
    ),
    "h100": _H100,
    "h200": _H100._replace(name="NVIDIA H200", memory=151_397_597_184, bandwidth=4800e9),
    "b200": _H100._replace(
        name="NVIDIA B200",
        memory=191_514_411_008,
        bandwidth=7672.32e9,
        links=1800e9,
        capability=10,
        cores=148,
        hertz=1.965e9,
        l2=132_644_864,
    ),
}
