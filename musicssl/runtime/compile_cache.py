"""Keeps compiled programs on disk, so that a restart does not spend minutes on compilation.

JAX_COMPILATION_CACHE_DIR names another place; JAX_ENABLE_COMPILATION_CACHE=false turns it off.
Processes may share the cache: an entry is written once and found by a hash of the program, the
devices and the versions of everything that compiles.
"""

import hashlib
import os
import platform
import re
import sys
from pathlib import Path

import jax


def keep() -> None:
    """Keep compiled programs in the user's cache, if the user has a home directory."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]  # jax adds it
        folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        if not folder.is_absolute():  # a container's user without a name has no home
            return
        folder = folder / "musicssl/xla" / machine()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            print(
                f"musicssl: compiled programs are not kept: {folder} cannot be made "
                f"({error.strerror}); JAX_COMPILATION_CACHE_DIR names another place",
                file=sys.stderr,
            )
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def machine() -> str:
    """Name this kind of processor: a program compiled for one may not run on another."""
    path = Path("/proc/cpuinfo")
    info = path.read_text() if path.exists() else platform.processor()
    features = re.findall(r"^(?:flags|Features)\s*:(.*)$", info, re.MULTILINE)[:1]
    described = [platform.machine(), *sorted(" ".join(features or [info]).split())]
    return f"{platform.machine()}-{hashlib.sha256(' '.join(described).encode()).hexdigest()[:8]}"
