"""A model of transformers on disk, which several files of this folder read."""

from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch

from tests.support import torch_models


@pytest.fixture
def saved(tmp_path) -> Path:
    """A small HuBERT as transformers writes it."""
    return torch_models.save(torch_models.small("hubert"), tmp_path / "saved")


@pytest.fixture
def weights(saved) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(saved / "model.safetensors")
