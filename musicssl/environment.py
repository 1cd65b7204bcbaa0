"""What may change a command's results here: JAX's settings, keys, devices, versions.

Masks, dropout and initial values are functions of a seed and a step, whatever random generator the
environment sets. Everything else that may change a result is written into each save, so that
a resumed run can say what has changed.
"""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path

import flax
import jax

from data_pipelines import machine

# Settings of JAX and Flax, with the values that this code needs. Others, which the environment may
# set (JAX_ENABLE_X64=1), would break it or silently change random draws.
_JAX = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_disable_jit": False,
    "jax_no_tracing": False,
    "jax_no_execution": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_transfer_guard": "allow",
    "jax_transfer_guard_host_to_device": "allow",
    "jax_transfer_guard_device_to_device": "allow",
    "jax_transfer_guard_device_to_host": "allow",
}
_FLAX = {"flax_fix_rng_separator": False, "flax_return_frozendict": False}
_FOLDERS = ("jax_compilation_cache_dir", "jax_dump_ir_to")
# What else changes results, mostly in their last digits.
_VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def tell_tensorflow() -> None:
    """Tell TensorFlow, before it is loaded, to be quiet and to write no files: it only reads data.

    If a user has no home directory, as in a container, Keras would create a folder named `~`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    if os.path.expanduser("~") == "~":
        os.environ.setdefault("KERAS_HOME", os.devnull)


def settle() -> list[str]:
    """Give JAX and Flax the settings that this code is written for.

    Returns:
      the environment variables that set other values and now have no effect.
    """
    undone = []
    for config, wanted in ((jax.config, _JAX), (flax.config, _FLAX)):
        for name, value in wanted.items():
            given = getattr(config, name, value)  # other versions may lack a setting
            if given not in (value, None):
                config.update(name, value)  # type: ignore[attr-defined]
                undone.append(f"{name.upper()}={given}")
    return undone


def share_gpu() -> None:
    """Make JAX allocate GPU memory as needed, instead of most of it at the start.

    This is for commands in which another library needs some too; call it before JAX finds devices.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def key(seed: int | jax.Array) -> jax.Array:
    """Return the random key of a seed, of the one generator that defines all results."""
    return jax.random.key(seed, impl="threefry2x32")


def require_devices() -> None:
    """Find the devices that JAX is to use, before anything needs them.

    Raises:
      ValueError: JAX_PLATFORMS or JAX_PLATFORM_NAME asks for a platform without devices; the
        message names those that have some.
    """
    try:
        jax.devices()
    except Exception as error:  # JAX raises several kinds, and for CUDA a bare AssertionError
        said = next(iter(str(error).splitlines()), "JAX is installed without it")
        asked = {  # jax.config has no attribute for the first
            "jax_platform_name": os.environ.get("JAX_PLATFORM_NAME"),
            "jax_platforms": getattr(jax.config, "jax_platforms", None),
        }
        for name, wanted in asked.items():
            if not wanted:
                continue
            jax.config.update(name, "" if name == "jax_platform_name" else None)
            with contextlib.suppress(Exception):  # if the other one is wrong as well
                there = dict.fromkeys([jax.default_backend(), "cpu"])
                said = (
                    f"there is no device of the platform {wanted} ({said}): set {name.upper()} to "
                    f"{' or '.join(there)}, or leave it out"
                )
                break
        raise ValueError(said) from error


def require_folders() -> None:
    """Create the folders that the environment gives JAX, with `~` expanded.

    JAX itself would create folders called gs: and ~ in the current one, and would end or go on
    without them in the middle of a run, with pages of warnings.

    Raises:
      ValueError: one of them cannot be a folder; the message names the variable.
    """
    for name in _FOLDERS:
        # some of JAX's settings are no attributes of its configuration
        folder = getattr(jax.config, name, os.environ.get(name.upper()))
        if not folder or folder == "sponge":  # Google's own place, for jax_dump_ir_to
            continue
        try:
            whole = machine.anywhere(folder)
            if not whole.startswith("gs://"):
                Path(whole).mkdir(parents=True, exist_ok=True)
        except ValueError as error:
            raise ValueError(f"{name.upper()}: {error}, or leave it out") from None
        except OSError as error:
            raise ValueError(
                f"{name.upper()}={folder} cannot be made a folder ({error.strerror}): name "
                "another, or leave it out"
            ) from error
        jax.config.update(name, whole)


def described() -> dict[str, str]:
    """Return the versions, settings and devices that results depend on, by name."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _VERSIONS},
        **{name: os.environ.get(name, "") for name in _FLAGS},
        "matmul precision": str(getattr(jax.config, "jax_default_matmul_precision", None)),
        "device": jax.devices()[0].device_kind,
    }
