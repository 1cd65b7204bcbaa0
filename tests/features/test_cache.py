"""The cache of features: whole after an interruption, by encoder, refused where it cannot be."""

import contextlib
import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import claim
from musicssl.command import note
from musicssl.features import batches, cache, extract, windows
from tests.support.feature_sources import LENGTHS, RATE, SECONDS, get, read, source

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_an_interrupted_pass_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = get(tmp_path / "whole")
    monkeypatch.setattr(batches, "AHEAD", 0)
    asked = []

    def failing(record: int) -> np.ndarray:
        asked.append(record)
        if record == 3:
            raise OSError("the disk went away")
        return read(record)

    with pytest.raises(OSError, match="went away"):
        get(tmp_path / "cut", read=failing)
    progress = next((tmp_path / "cut").rglob("*.progress.json"))
    # the first batch is written, of records 0 and 1, and the remainder of record 0 waits for others
    noted = json.loads(progress.read_text())
    assert (noted["windows"], noted["waiting"]) == (4, [2])
    asked.clear()

    def counting(record: int) -> np.ndarray:
        asked.append(record)
        return read(record)

    again = get(tmp_path / "cut", read=counting)
    assert asked == [0, 2, 3]  # what was written is not read again
    for pool, values in whole.items():
        np.testing.assert_array_equal(values, again[pool])
    assert not list((tmp_path / "cut").rglob("*.part"))


def test_a_killed_pass_knows_which_windows_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SAVE_EVERY", 2)
    cut, path = windows.cut(LENGTHS, SECONDS, RATE), tmp_path / "features.npy"
    rows = [cut.record, cut.samples]  # layers 1, width 2

    def written(numbers: list[int]) -> dict[int, np.ndarray]:
        return {windows.WHOLE: np.stack([x[numbers] % 2048 for x in rows], -1)[None, :, None]}

    files = cache.FeatureFiles(1, 2, cut, {windows.WHOLE: path})
    for numbers in ([0, 1, 3], [2, 6], [4, 5]):  # the last is written, but not yet saved
        files.write(numbers, written(numbers))
    again = cache.FeatureFiles(1, 2, cut, {windows.WHOLE: path})
    assert np.flatnonzero(~again.written).tolist() == [4, 5, 7]
    again.write([7, 4, 5], written([7, 4, 5]))
    again.finish()
    np.testing.assert_array_equal(np.load(path), written(list(range(8)))[windows.WHOLE][:, :, 0])
    assert [x.name for x in tmp_path.iterdir()] == ["features.npy"]


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
    with pytest.raises(OSError, match=r"0.00 GB free, but these features take .*config.cache"):
        get(tmp_path)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("first_ends", ["complete", "stopped"])
def test_passes_that_begin_at_one_instant_read_each_record_once(
    tmp_path, monkeypatch, first_ends
) -> None:
    """One makes the features; where it is stopped, the others go on with what it has made."""
    monkeypatch.setattr(claim, "_LOOK_EVERY", 0.02)
    monkeypatch.setattr(cache, "SAVE_EVERY", 1)
    monkeypatch.setattr(batches, "AHEAD", 0)
    whole = get(tmp_path / "whole")
    together, asked, passes = threading.Barrier(3), [], itertools.count()

    def after_the_look(value: np.ndarray) -> np.ndarray:
        with contextlib.suppress(threading.BrokenBarrierError):  # one alone gets here
            together.wait(0.3)
        return value

    monkeypatch.setattr(extract, "_from_first_process", after_the_look)

    def begin() -> dict[int, np.ndarray]:
        mine: list[int] = []

        def reading(record: int) -> np.ndarray:
            if not mine:
                mine.append(next(passes))
            if record == 3 and mine == [0] and first_ends == "stopped":
                raise OSError("asked to end")
            asked.append((record, *mine))
            return read(record)

        return get(tmp_path / "same", read=reading)

    with ThreadPoolExecutor(3) as pool:
        begun = [pool.submit(begin) for _ in range(3)]
    stopped = [future for future in begun if future.exception()]
    assert len(stopped) == (first_ends == "stopped")
    again = [(0, 1), (2, 1), (3, 1)] if stopped else []  # of record 0 and 2 a window was waiting
    assert asked == [(0, 0), (1, 0), (2, 0), *([] if stopped else [(3, 0)]), *again]
    for future in set(begun) - set(stopped):
        for pool_frames, values in whole.items():
            np.testing.assert_array_equal(values, future.result()[pool_frames])
    names = {path.suffix for path in (tmp_path / "same").rglob("*") if path.is_file()}
    assert names == {".npy"}


def test_a_pass_that_another_process_makes_is_waited_for(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(claim, "_LOOK_EVERY", 0.02)
    begun, told = threading.Event(), threading.Event()

    def slow(record: int) -> np.ndarray:
        begun.set()
        assert told.wait(60)
        return read(record)

    def noted(line: str) -> None:
        told.set()
        note(line)

    def refuse(record: int) -> np.ndarray:
        raise AssertionError(f"record {record} was read by both")

    monkeypatch.setattr(cache, "note", noted)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(get, tmp_path, read=slow)
        assert begun.wait(60)
        second = get(tmp_path, read=refuse)
        assert second.keys() == first.result().keys()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"are being extracted by process {os.getpid()} on" in said


def test_passes_of_other_pools_do_not_mix(tmp_path, monkeypatch) -> None:
    """Both are interrupted; the first goes on with its own files."""
    whole = get(tmp_path / "whole")
    monkeypatch.setattr(cache, "SAVE_EVERY", 1)
    monkeypatch.setattr(batches, "AHEAD", 0)

    def until(last: int) -> Callable[[int], np.ndarray]:
        def failing(record: int) -> np.ndarray:
            if record > last:
                raise OSError("the disk went away")
            return read(record)

        return failing

    for pools, last in (((0, 25, 1), 2), ((0,), -1), ((25,), -1), ((1,), -1)):
        with pytest.raises(OSError, match="went away"):
            get(tmp_path / "cut", pools, until(last))
    found = get(tmp_path / "cut")
    for pool, values in whole.items():
        np.testing.assert_array_equal(values, found[pool])
