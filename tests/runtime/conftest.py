"""A workdir with saved states, which several files of this folder begin with."""

from pathlib import Path

import pytest

from musicssl.runtime.checkpoint import Checkpoints
from musicssl.runtime.workdir import claim
from tests.support.saved_states import config, made_state


@pytest.fixture
def saved(tmp_path) -> Path:
    """A workdir with steps 2 and 4."""
    workdir = tmp_path / "run"
    claim(workdir, config())
    checkpoints = Checkpoints(workdir, config())
    for step in (2, 4):
        assert checkpoints.save(step, made_state(step))
    checkpoints.close()
    return workdir
