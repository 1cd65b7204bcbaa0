"""Reads PyTorch's pickled checkpoints without running code that they contain."""

import argparse
import io
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from musicssl import paths
from musicssl.command import first_line


class _Unread:
    """Stands in for an object that a checkpoint holds besides its weights; it keeps nothing."""

    def __new__(cls, *_: Any) -> "_Unread":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# fairseq stores its task's dictionaries, NumPy scalars among its statistics, and in checkpoints
# before 2021 the command line, as a Namespace that holds the model's configuration.
_STAND_INS = (
    (_Unread, "fairseq.data.dictionary.Dictionary"),
    (_Unread, "numpy.core.multiarray.scalar"),
    (_Unread, "numpy._core.multiarray.scalar"),
    (_Unread, "numpy.dtype"),
    argparse.Namespace,
)


_POINTER = b"version https://git-lfs"
_ADVICE = ("weights_only", "pytorch.org")  # words of lines that advise running code, or say nothing


def refuse_pointer(path: Path) -> None:
    """Raise ValueError for the pointer that Git LFS leaves in place of a file it did not fetch."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(
                f"{path} is a pointer of Git LFS in place of the file: run git lfs pull in its "
                "repository"
            )


def read(path: Path) -> Any:
    """Return the result of torch.load on the CPU with weights_only, memory-mapped if possible.

    Raises:
      ValueError: PyTorch is not installed, the file is damaged, or reading it would run code.
    """
    refuse_pointer(path)
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path} is a pickle, and reading it needs PyTorch: pip install torch, or convert the "
            "file to model.safetensors"
        ) from None

    try:
        with torch.serialization.safe_globals(list(_STAND_INS)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how the file was pickled
            if paths.is_remote(path):
                held = io.BytesIO(path.read_bytes())
                return torch.load(held, map_location="cpu", weights_only=True)
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise ValueError(f"{path} is damaged or not PyTorch's: {_described(error)}") from None
        raise ValueError(
            f"{path} is refused: reading it would run code ({named[1]}); ask its author to save "
            "the tensors as model.safetensors"
        ) from None
    except (EOFError, RuntimeError, KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {_described(error)}") from None


def to_numpy(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return only a state dict's tensors, as NumPy arrays, with half precisions as float32."""
    import torch

    halves = (torch.float16, torch.bfloat16)
    return {
        name: (tensor.float() if tensor.dtype in halves else tensor).detach().numpy()
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor)
    }


def _described(error: Exception) -> str:
    """Return an error's kind and the first line that says what is wrong."""
    lines = [line for line in str(error).splitlines() if not any(x in line for x in _ADVICE)]
    return f"{type(error).__name__}: {first_line(ValueError(chr(10).join(lines)))}"
