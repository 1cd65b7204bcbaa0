"""Set before anything starts JAX, for this process and those that it starts.

Tests of TPU plans run where the TPU's compiler is installed: pip install 'jax[tpu]'.
"""

import importlib.util
import os

from tests import compiling

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
collect_ignore = [] if HAS_LIBTPU else ["test_plan_tpu.py"]
os.environ["XLA_FLAGS"] = compiling.xla_flags()
if HAS_LIBTPU:  # else jax would look for a TPU in every process of the suite
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def pytest_report_header() -> str:
    how = "run" if HAS_LIBTPU else "left out: libtpu is not installed (pip install 'jax[tpu]')"
    return f"tests of TPU plans: {how}"
