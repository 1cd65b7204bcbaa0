"""How tests compile: what runs for a moment is not worth optimising."""

import importlib.metadata

# An XLA that does not know a flag ends the process. This one went with jaxlib 0.11.
_HAS_OTHER_EMITTERS = importlib.metadata.version("jaxlib").startswith("0.10.")
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
) + (" --xla_cpu_use_fusion_emitters=false" if _HAS_OTHER_EMITTERS else "")
# Fused, a step on full-size arrays takes half the time; tests at large compile faster without.
FUSED = {"xla_backend_optimization_level": 1} | (
    {"xla_cpu_use_fusion_emitters": True} if _HAS_OTHER_EMITTERS else {}
)


def xla_flags(devices: int = 1) -> str:
    """XLA_FLAGS of a process with so many CPU devices.

    Compiling takes most of a tiny run's time. The partitioner's work is the same, but fused
    arithmetic may round otherwise than in the programs that users run: all processes of a test
    agree, and `python -m tests.faults.kill` holds users' programs to the same promises.
    """
    return f"--xla_force_host_platform_device_count={devices} {QUICK}"
