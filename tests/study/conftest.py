"""A fabricated study, which the files of this folder report on."""

from pathlib import Path

import pytest

from tests.support import fabricated_study


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    fabricated_study.fabricate(folder)
    return folder
