"""Pooled features against the encoder applied window by window; resuming; the cache."""

import functools
import json
import shutil
import socket
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from musicssl import audio
from musicssl.features import cache, extract, windows
from musicssl.model.encoder import Encoder
from musicssl.runtime import distributed, sharding
from tests.support import commands, tiny

RATE = 16_000
LENGTHS = np.array([40_000, 16_000, 51_000, 9_000])  # at 1 s: 2.5, 1, 3.19 and 0.56 windows
SEED = 4
pytestmark = pytest.mark.usefixtures("compiled_once")


@functools.cache
def source(normalize: bool = True, digest: str = "tiny") -> extract.Source:
    encoder = Encoder(**tiny.config().encoder)
    params = jax.jit(lambda key: encoder.init(key, jnp.zeros((1, 400)))["params"])
    params = jax.tree.map(np.asarray, params(jax.random.key(0)))

    def apply(params: dict, x: jax.Array):
        return encoder.apply({"params": params}, x).hidden

    layers, width = encoder.layers + 1, encoder.width
    return extract.Source("tiny", digest, layers, width, RATE, normalize, params, apply)


def read(record: int) -> np.ndarray:
    random = np.random.default_rng((SEED, record))
    return random.integers(-9000, 9000, LENGTHS[record], dtype=np.int16)


def get(folder: Path, pools=(windows.WHOLE, 25, 1), read=read, of=None) -> dict[int, np.ndarray]:
    cut = windows.cut(LENGTHS, 1.0, RATE)
    of = of or source()
    mesh = sharding.make_mesh()
    return extract.extract(of, cut, read, pools, folder, "data", mesh, batch=3)


def direct(of: extract.Source) -> list[np.ndarray]:
    """Real frames [layers, t, d] of each window, the encoder applied to one at a time."""
    apply, found = jax.jit(of.apply), []
    for record in range(len(LENGTHS)):
        x = read(record).astype(np.float32) / 32768
        if of.normalize:
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-7)
        for start in range(0, max(len(x), 1), RATE):
            window = x[start : start + RATE]
            if start and len(window) < RATE:
                continue  # all remainders here are shorter than a second
            padded = np.pad(window, (0, RATE - len(window)))
            hidden = np.stack(apply(of.params, padded[None]))[:, 0]
            found.append(hidden[:, : audio.frame_count(len(window))])
    return found


def test_windows_drop_short_remainders_and_keep_short_records() -> None:
    cut = windows.cut(np.array([75, 20, 5]), 3, 10)
    assert cut.record.tolist() == [0, 0, 0, 1, 2]
    assert cut.start.tolist() == [0, 30, 60, 0, 0]
    assert cut.samples.tolist() == [30, 30, 15, 20, 5]
    assert windows.cut(np.array([20, 20]), 3, 10).size == 20
    assert windows.cut(np.array([69, 30]), 3, 10).record.tolist() == [0, 0, 1]


@pytest.mark.parametrize("normalize", [True, False])
def test_rows_are_means_of_the_encoders_frames(normalize: bool, tmp_path: Path) -> None:
    of = source(normalize)
    found = get(tmp_path, of=of)
    frames = direct(of)
    assert [f.shape[1] for f in frames] == [49, 49, 49, 49, 49, 49, 27]
    wanted = {
        windows.WHOLE: [f.mean(1, keepdims=True) for f in frames],
        25: [
            np.stack([part.mean(1) for part in np.split(f, [25], 1)], 1)
            if f.shape[1] > 37
            else f[:, :25].mean(1, keepdims=True)
            for f in frames
        ],
        1: frames,
    }
    for pool, parts in wanted.items():
        value = np.concatenate(parts, 1)
        assert found[pool].shape == value.shape
        assert found[pool].dtype == np.float16
        np.testing.assert_allclose(found[pool].astype("f4"), value, atol=4e-3)
    assert np.abs(found[1][0].astype("f4") - found[1][1].astype("f4")).max() > 0.04  # layers differ


def test_rows_know_their_times() -> None:
    cut = windows.cut(LENGTHS, 1.0, RATE)
    rows = windows.rows(cut, 25, RATE)
    assert rows.record.tolist() == [0] * 4 + [1] * 2 + [2] * 6 + [3]
    np.testing.assert_allclose(rows.begin[:4], [0, 0.5, 1, 1.5])
    np.testing.assert_allclose(rows.end[:4], [0.5, 0.98, 1.5, 1.98])
    assert len(windows.rows(cut, 1, RATE).record) == 6 * 49 + 27


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


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    of = source()
    broken = of._replace(apply=lambda params, x: [h * 1e9 for h in of.apply(params, x)])
    with pytest.raises(ValueError, match="not finite in float16"):
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
