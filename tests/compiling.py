"""How tests compile: what runs for a moment is not worth optimising."""

QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false"
)


def xla_flags(devices: int = 1, optimize: bool = False) -> str:
    """XLA_FLAGS of a process with so many CPU devices.

    Compiling takes most of a tiny run's time. Neither the partitioner nor the order of a program's
    arithmetic is affected by `optimize`, and all processes of a test must agree on it.
    """
    seen = f"--xla_force_host_platform_device_count={devices}"
    return seen if optimize else f"{seen} {QUICK}"
