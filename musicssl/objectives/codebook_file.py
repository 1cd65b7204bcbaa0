"""The file codebook.npz: the arrays of each target's quantiser, their definitions, and a hash.

The arrays of a single target have plain names, such as "codebook"; with several targets, the names
begin with the target's: "mel.codebook". Until the file is written, the states of fits are kept in
one of the same form beside it.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musicssl import paths

Quantizers = Mapping[str, Mapping[str, np.ndarray]]  # arrays by target and name


def digest(quantizers: Quantizers, definitions: Mapping[str, dict]) -> str:
    """Return the SHA-256 of quantisers and their features' definitions, in hexadecimal.

    Args:
      definitions: for each target, what its feature is made of, in plain values.
    """
    return _hashed(_flat(quantizers), _alone(definitions))


def save(path: Path, quantizers: Quantizers, definitions: Mapping[str, dict]) -> None:
    """Write the quantisers with their hash and definitions."""
    arrays = {name: np.asarray(x, np.float32) for name, x in _flat(quantizers).items()}
    feature = np.array(json.dumps(_alone(definitions), sort_keys=True))
    _write(path, **arrays, feature=feature, hash=np.array(digest(quantizers, definitions)))


def load(
    path: Path, definitions: Mapping[str, dict], clusters: Mapping[str, int]
) -> dict[str, dict[str, np.ndarray]]:
    """Read quantisers of these targets as `save` wrote them.

    Args:
      definitions, clusters: by target.

    Raises:
      ValueError: the file is damaged, or has other features or numbers of clusters.
    """
    saved = _read(path, ("feature", "hash"))
    made_of, written = json.loads(str(saved.pop("feature"))), str(saved.pop("hash"))
    if _hashed(saved, made_of) != written:
        raise ValueError(f"{path} does not match its own hash: delete it and fit it again")
    wanted = json.loads(json.dumps(_alone(definitions)))  # with lists for tuples, as in the file
    if made_of != wanted:
        raise ValueError(
            f"{path} is a codebook of {made_of}, but the config asks for {wanted}: "
            "restore the config, or delete the file to fit it again"
        )
    quantizers = _nested(saved, list(definitions))
    for name, arrays in quantizers.items():
        found, whose = len(arrays["codebook"]), f" of {name}" if len(definitions) > 1 else ""
        if found != clusters[name]:
            raise ValueError(
                f"{path} has {found} clusters{whose}, but the config asks for {clusters[name]}: "
                "restore the config, or delete the file to fit it again"
            )
    return quantizers


def save_states(path: Path, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what the fits of targets need to resume: arrays and numbers by target and name."""
    _write(path, **_flat(states))


def load_states(
    path: Path, names: Mapping[str, tuple[str, ...]]
) -> dict[str, dict[str, np.ndarray]]:
    """Read states as `save_states` wrote them.

    Args:
      names: the names in each target's state.

    Raises:
      ValueError: the file is damaged.
    """
    wanted = _flat({target: dict.fromkeys(own) for target, own in names.items()})
    return _nested(_read(path, tuple(wanted)), list(names))


def _flat(by_target: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Give each array its name in a file."""
    if len(by_target) == 1:
        return dict(*by_target.values())
    return {f"{t}.{name}": x for t, arrays in by_target.items() for name, x in arrays.items()}


def _nested(arrays: Mapping[str, np.ndarray], targets: list[str]) -> dict[str, dict]:
    """Return the arrays of a file by target and name."""
    if len(targets) == 1:
        return {targets[0]: dict(arrays)}
    nested: dict[str, dict] = {target: {} for target in targets}
    for path, array in arrays.items():
        target, _, name = path.partition(".")
        nested[target][name] = array
    return nested


def _alone(by_target: Mapping[str, Any]) -> Any:
    """Return the only value, or all values by target if there are several."""
    return next(iter(by_target.values())) if len(by_target) == 1 else dict(by_target)


def _hashed(arrays: Mapping[str, np.ndarray], made_of: Any) -> str:
    plain = {x: np.ascontiguousarray(arrays[x], np.dtype("<f4")) for x in sorted(arrays)}
    shapes: Any = {name: array.shape for name, array in plain.items()}
    if list(plain) == ["codebook"]:
        shapes = plain["codebook"].shape
    described = json.dumps([made_of, shapes], sort_keys=True).encode()
    return hashlib.sha256(described + b"".join(x.tobytes() for x in plain.values())).hexdigest()


def _write(path: Path, **arrays: Any) -> None:
    """Write arrays under their names, either all or none."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    paths.write(path, buffer.getvalue())


def _read(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read all arrays of a file, which must contain these names.

    Raises:
      ValueError: the file is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            missing = [name for name in names if name not in file.files]
            if missing:
                raise KeyError(missing[0])
            return {name: file[name] for name in file.files}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and fit it again") from error
