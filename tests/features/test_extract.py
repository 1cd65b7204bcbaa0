"""Pooled features against the encoder applied window by window; resuming; the cache."""

import socket
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

from musicssl.features import batches as filling
from musicssl.features import extract, windows
from musicssl.runtime import distributed, sharding
from tests.support import commands, tiny
from tests.support.feature_sources import LENGTHS, RATE, SECONDS, get, read, source

pytestmark = pytest.mark.usefixtures("compiled_once")
SIZE = round(SECONDS * RATE)


def direct(of: extract.FeatureSource, alone: bool) -> list[np.ndarray]:
    """Frames [layers, t, d] of each window, the encoder applied to its samples and no others."""
    apply, found = jax.jit(of.apply), []
    for record, length in enumerate(LENGTHS):
        x = read(record).astype(np.float32) / 32768
        for start in range(0, length, SIZE):
            window = x[start : start + SIZE]
            if start and len(window) < RATE:
                continue
            if of.normalize:
                over = window if alone else x
                window = (window - over.mean()) / np.sqrt(over.var() + 1e-7)
            found.append(np.stack(apply(of.params, window[None]))[:, 0])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem_norm", "normalize", "alone"),
    [("layer", True, False), ("layer", True, True), ("group", False, False)],
)
def test_rows_are_means_of_the_frames_that_a_window_has_alone(
    stem_norm: str, normalize: bool, alone: bool, tmp_path: Path
) -> None:
    of = source(normalize, stem_norm=stem_norm)
    found = get(tmp_path, of=of, standardised_alone=alone)
    frames = direct(of, alone)
    assert [f.shape[1] for f in frames] == [74, 74, 49, 74, 74, 74, 74, 53]
    wanted = {
        windows.WHOLE: [f.mean(1, keepdims=True) for f in frames],
        25: [
            np.stack([f[:, i : i + 25].mean(1) for i in range(0, f.shape[1] - 12, 25)], 1)
            for f in frames
        ],
        1: frames,
    }
    for pool, parts in wanted.items():
        value = np.concatenate(parts, 1)
        assert found[pool].shape == value.shape
        assert found[pool].dtype == np.float16
        # a unit in float16's last place
        np.testing.assert_allclose(found[pool].astype("f4"), value, rtol=1.01e-3, atol=1e-5)
    assert np.abs(found[1][0].astype("f4") - found[1][1].astype("f4")).max() > 0.04  # layers differ


def test_records_of_any_length_have_features(tmp_path: Path) -> None:
    """One frame at least: less than a window of the stem is heard with zeros up to it."""
    lengths = np.array([16_000, 400, 300, 1, 5_999])
    sounds = [np.random.default_rng(n).integers(-9000, 9000, n, np.int16) for n in lengths]
    of, mesh = extract.open_source("logmel"), sharding.make_mesh()
    cut = windows.cut(lengths, 1.0, RATE)
    where = tmp_path, "data", mesh, 2
    found = extract.extract(of, cut, sounds.__getitem__, (windows.WHOLE,), *where)[windows.WHOLE]
    for i, sound in enumerate(sounds):
        heard = np.pad(sound, (0, max(400 - len(sound), 0)))[None] / np.float32(32768)
        (alone,) = of.apply(of.params, heard)
        np.testing.assert_allclose(found[0, i], alone[0].mean(0), rtol=1.01e-3, atol=1e-4)


def test_batches_are_of_one_length_and_read_each_record_once() -> None:
    """Whole windows are never beside padded ones, so that they have a program of their own."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100_000, 40)
    cut, asked = windows.cut(lengths, SECONDS, RATE), []

    def loud(record: int) -> np.ndarray:
        asked.append(record)
        return np.arange(1, lengths[record] + 1).astype(np.int16)

    waiting = [i for i in range(len(cut.record)) if i % 7]
    batches = list(filling.batches(False, cut, loud, waiting, 4))
    assert asked == sorted(set(cut.record[waiting]))
    assert sorted(i for batch in batches for i in batch.numbers) == waiting
    assert len({(batch.sound.shape, batch.is_whole) for batch in batches}) == 5
    assert len(batches) <= len(waiting) // 4 + 5
    for batch in batches:
        assert {cut.samples[i] == cut.size for i in batch.numbers} == {batch.is_whole}
        assert batch.sound.shape == (4, windows.padded(cut)[batch.numbers[0]])
        for i, row, samples in zip(batch.numbers, batch.sound, batch.samples, strict=False):
            own = loud(cut.record[i])[cut.start[i] : cut.start[i] + cut.samples[i]]
            assert samples == len(own) and not row[samples:].any()
            np.testing.assert_array_equal(row[:samples], own)


def test_what_is_standardised_over_has_features_of_its_own(tmp_path: Path) -> None:
    for of in (source(True), source(False)):
        keys = {
            extract._key(of, windows.cut(LENGTHS, SECONDS, RATE, alone), 0, "data")
            for alone in (False, True)
        }
        assert len(keys) == 1 + of.normalize  # without normalisation they are the same


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    of = source()
    broken = of._replace(apply=lambda *x: [h * 1e9 for h in of.apply(*x)])
    with pytest.raises(ValueError, match="tiny: layer 0 of window 0 is not finite in float16"):
        get(tmp_path, of=broken)


def eight_devices(folder: str) -> list[float]:
    assert jax.device_count() == 8
    return np.asarray(get(Path(folder))[windows.WHOLE], "f4").ravel().tolist()


def test_eight_devices_give_the_same_features(tmp_path: Path) -> None:
    alone = np.asarray(get(tmp_path / "one")[windows.WHOLE], "f4").ravel()
    eight = tiny.on_eight_devices(eight_devices, str(tmp_path / "eight"))
    np.testing.assert_allclose(eight, alone, atol=2e-3)


def in_a_job(folder: str, port: int, number: int) -> None:
    """One process of two."""
    job = [f"--coordinator=localhost:{port}", "--processes=2", f"--process={number}"]
    flags.FLAGS(["", *job])
    distributed.start()
    with distributed.together():
        found = get(Path(folder))
    print(jax.process_count(), jax.device_count(), len(found))
    jax.distributed.shutdown()


def test_one_process_finds_what_two_have_extracted(tmp_path: Path) -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    job = [commands.Process(in_a_job, str(tmp_path), port, number) for number in (0, 1)]
    said = [process.communicate() for process in job]
    assert [process.returncode for process in job] == [0, 0], said
    # the first process alone has the features
    assert "2 2 3" in said[0][0].splitlines() and "2 2 0" in said[1][0].splitlines()

    def refuse(record: int) -> np.ndarray:
        raise AssertionError(f"record {record} was read again")

    of_two, of_one = get(tmp_path, read=refuse), get(tmp_path / "one")
    for pool, values in of_one.items():
        np.testing.assert_allclose(of_two[pool].astype("f4"), values.astype("f4"), atol=2e-3)
