"""Pickles of PyTorch: damaged ones, harmful ones, and none without PyTorch."""

import os
import pickle
import sys

import pytest
import torch

from musicssl.exchange import huggingface


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_truncated_pickle(saved, weights, keep):
    (saved / "model.safetensors").unlink()
    path = saved / "pytorch_model.bin"
    torch.save({k: torch.from_numpy(v) for k, v in weights.items()}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged"):
        huggingface.read_directory(saved)


@pytest.mark.parametrize("content", [b"<html>not found</html>", bytes(200), b"\x80\x04\x95"])
def test_what_is_no_pickle_is_told_without_advice_to_run_it(saved, content):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(content)
    told = "damaged or not PyTorch's: UnpicklingError: Unsupported operand"
    with pytest.raises(ValueError, match=told) as error:
        huggingface.read_directory(saved)
    assert "weights_only" not in str(error.value) and "issue" not in str(error.value)


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_pickle_that_runs_code_is_refused(saved, monkeypatch):
    monkeypatch.chdir(saved)
    (saved / "model.safetensors").unlink()
    for save in (torch.save, lambda x, path: path.write_bytes(pickle.dumps(x, protocol=2))):
        save({"weight": Harmful()}, saved / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"pytorch_model\.bin is (refused|damaged)"):
            huggingface.read_directory(saved)
    assert not (saved / "harmed").exists()


def test_a_pickle_without_pytorch(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    huggingface.read_directory(saved)  # safetensors needs none
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match="reading it needs PyTorch: pip install torch"):
        huggingface.read_directory(saved)
