"""The cache of features: whole after an interruption, by encoder, refused where it cannot be."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from musicssl.features import cache, extract
from tests.support.feature_sources import get, read, source

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_an_interrupted_pass_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = get(tmp_path / "whole")
    monkeypatch.setattr(cache, "SAVE_EVERY", 1)
    monkeypatch.setattr(extract, "AHEAD", 0)
    asked = []

    def failing(record: int) -> np.ndarray:
        asked.append(record)
        if record == 3:
            raise OSError("the disk went away")
        return read(record)

    with pytest.raises(OSError, match="went away"):
        get(tmp_path / "cut", read=failing)
    progress = next((tmp_path / "cut").rglob("*.progress.json"))
    assert 0 < json.loads(progress.read_text())["windows"] < 7
    asked.clear()

    def counting(record: int) -> np.ndarray:
        asked.append(record)
        return read(record)

    again = get(tmp_path / "cut", read=counting)
    assert 0 not in asked  # what was written is not read again
    assert 3 in asked
    for pool, values in whole.items():
        np.testing.assert_array_equal(values, again[pool])
    assert not list((tmp_path / "cut").rglob("*.part"))


def test_the_cache_is_by_encoder_and_read_only_once(tmp_path: Path) -> None:
    first = get(tmp_path)

    def refuse(record: int) -> np.ndarray:
        raise AssertionError(f"record {record} was read again")

    again = get(tmp_path, read=refuse)
    np.testing.assert_array_equal(first[25], again[25])
    with pytest.raises(AssertionError, match="read again"):
        get(tmp_path, read=refuse, of=source(digest="another"))


def test_a_disk_that_is_too_small_is_told_before(tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"0.00 GB free and these features take .*config.cache"):
        get(tmp_path)
    assert not list(tmp_path.rglob("*.part"))
