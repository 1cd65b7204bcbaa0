"""How tests compile: what runs for a moment is not worth optimising."""

QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)


def xla_flags(devices: int = 1) -> str:
    """XLA_FLAGS of a process with so many CPU devices.

    Compiling takes most of a tiny run's time. The partitioner's work is the same, but fused
    arithmetic may round otherwise than in the programs that users run: all processes of a test
    agree, and `python -m tests.faults.kill` holds users' programs to the same promises.
    """
    return f"--xla_force_host_platform_device_count={devices} {QUICK}"
