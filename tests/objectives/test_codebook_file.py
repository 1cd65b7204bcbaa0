"""codebook.npz: what comes back from it, and what is refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from musicssl.objectives import codebook_file
from tests.support.clustered import frames

MFCC = {"feature": "mfcc", "ceps": 13, "differences": 2}
MEL = {"feature": "mel", "bands": 80, "quantizer": "random"}
ONE = {"mfcc": {"codebook": frames(20)}}
SEVERAL = ONE | {"mel_1": {"codebook": frames(6, 4), "mean": frames(1, 80)[0]}}
OF_ONE, OF_SEVERAL = {"mfcc": MFCC}, {"mfcc": MFCC, "mel_1": MEL}


@pytest.mark.parametrize("quantizers, of", [(ONE, OF_ONE), (SEVERAL, OF_SEVERAL)])
def test_quantisers_come_back_as_saved(tmp_path: Path, quantizers: dict, of: dict) -> None:
    path = tmp_path / "codebook.npz"
    codebook_file.save(path, quantizers, of)
    loaded = codebook_file.load(path, of, {"mfcc": 20, "mel_1": 6})
    assert loaded.keys() == quantizers.keys()
    for name, arrays in quantizers.items():
        assert loaded[name].keys() == arrays.keys()
        for array in arrays:
            np.testing.assert_array_equal(loaded[name][array], arrays[array])
    assert [file.name for file in tmp_path.iterdir()] == ["codebook.npz"]


def test_a_lone_codebook_is_written_as_it_always_was(tmp_path: Path) -> None:
    """Its names and its hash, so that workdirs of older versions go on."""
    path = tmp_path / "codebook.npz"
    codebook_file.save(path, ONE, OF_ONE)
    with np.load(path) as file:
        assert set(file.files) == {"codebook", "feature", "hash"}
        assert json.loads(str(file["feature"])) == MFCC
        described = json.dumps([MFCC, (20, 13)], sort_keys=True).encode()
        digest = hashlib.sha256(described + frames(20).astype("<f4").tobytes())
        assert str(file["hash"]) == digest.hexdigest()


def test_another_codebook_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "codebook.npz"
    codebook_file.save(path, ONE, OF_ONE)
    with pytest.raises(ValueError, match=r"codebook\.npz has 20 clusters, but .* asks for 21"):
        codebook_file.load(path, OF_ONE, {"mfcc": 21})
    with pytest.raises(ValueError, match=r"codebook\.npz is a codebook of .*13.* asks for .*20"):
        codebook_file.load(path, {"mfcc": MFCC | {"ceps": 20}}, {"mfcc": 20})
    with pytest.raises(ValueError, match=r"is a codebook of .* asks for .*mel_1"):
        codebook_file.load(path, OF_SEVERAL, {"mfcc": 20, "mel_1": 6})
    codebook_file.save(path, SEVERAL, OF_SEVERAL)
    with pytest.raises(ValueError, match=r"has 6 clusters of mel_1, but the config asks for 7"):
        codebook_file.load(path, OF_SEVERAL, {"mfcc": 20, "mel_1": 7})
    with pytest.raises(ValueError, match=r"is a codebook of .*mel_1.* asks for"):
        codebook_file.load(path, OF_ONE, {"mfcc": 20})


@pytest.mark.parametrize("quantizers, of", [(ONE, OF_ONE), (SEVERAL, OF_SEVERAL)])
def test_a_damaged_codebook_is_refused(tmp_path: Path, quantizers: dict, of: dict) -> None:
    path = tmp_path / "codebook.npz"
    codebook_file.save(path, quantizers, of)
    clusters = {"mfcc": 20, "mel_1": 6}
    with np.load(path) as file:
        saved = dict(file)
    for name in saved.keys() - {"feature", "hash"}:
        np.savez(path, **(saved | {name: saved[name] + 1}))
        with pytest.raises(ValueError, match=r"codebook\.npz does not match its own hash"):
            codebook_file.load(path, of, clusters)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"codebook\.npz is damaged"):
        codebook_file.load(path, of, clusters)
    np.savez(path, codebook=frames(20))
    with pytest.raises(ValueError, match=r"codebook\.npz is damaged"):
        codebook_file.load(path, of, clusters)


def test_the_hash_depends_on_every_value_and_definition() -> None:
    original = codebook_file.digest(SEVERAL, OF_SEVERAL)
    turned = {name: {"codebook": x["codebook"].copy(order="F")} for name, x in ONE.items()}
    assert original == codebook_file.digest(
        SEVERAL | turned, {name: dict(reversed(x.items())) for name, x in OF_SEVERAL.items()}
    )
    assert original != codebook_file.digest(SEVERAL, OF_SEVERAL | {"mel_1": MEL | {"bands": 40}})
    for name, arrays in SEVERAL.items():
        for array, values in arrays.items():
            changed = arrays | {array: np.nextafter(values, np.inf)}
            assert original != codebook_file.digest(SEVERAL | {name: changed}, OF_SEVERAL)
    swapped = {"mfcc": SEVERAL["mel_1"], "mel_1": SEVERAL["mfcc"]}
    assert original != codebook_file.digest(swapped, OF_SEVERAL)


@pytest.mark.parametrize("targets", [["mfcc"], ["mfcc", "mel_1"]])
def test_states_come_back_as_saved(tmp_path: Path, targets: list[str]) -> None:
    path = tmp_path / "codebook.state.npz"
    states = {x: {"codebook": frames(3), "counts": np.arange(3), "finished": True} for x in targets}
    codebook_file.save_states(path, states)
    names = dict.fromkeys(targets, ("codebook", "counts", "finished"))
    loaded = codebook_file.load_states(path, names)
    for target in targets:
        for name, array in loaded[target].items():
            np.testing.assert_array_equal(array, states[target][name])
    with pytest.raises(ValueError, match=r"state\.npz is damaged .*inertia"):
        codebook_file.load_states(path, names | {targets[0]: ("inertia",)})
