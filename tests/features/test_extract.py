"""Pooled features against the encoder applied window by window; resuming; the cache."""

import socket
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

from musicssl import audio
from musicssl.features import extract, windows
from musicssl.runtime import distributed
from tests.support import commands, tiny
from tests.support.feature_sources import LENGTHS, RATE, get, read, source

pytestmark = pytest.mark.usefixtures("compiled_once")


def direct(of: extract.FeatureSource) -> list[np.ndarray]:
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
