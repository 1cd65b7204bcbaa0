"""The encoders of musicssl/probing/examples, and features computed elsewhere, through the tasks."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from musicssl import host
from musicssl.features import extract, stored
from musicssl.probing import session, tasks
from musicssl.runtime import sharding
from tests.support import torch_models
from tests.support.probes import config, nothing

pytestmark = pytest.mark.usefixtures("few_draws")
EXAMPLES = Path(__file__).parents[2] / "musicssl" / "probing" / "examples"


def of_example(name: str) -> extract.FeatureSource:
    return extract.open_source(f"python:{EXAMPLES / name}")


def scores(source: extract.FeatureSource, names: str, tmp_path: Path, synth_dir: str) -> dict:
    """Main scores of tasks, and the digests of their items."""
    settings = config(
        tmp_path, data_dir=synth_dir, tasks=names, kind="linear", epochs=2, layers="1"
    )
    given = session.Session(source, settings, sharding.make_mesh(), nothing)
    chosen = tasks.choose(names)
    results = [session.run_task(task, chosen, given) for task in chosen]
    return {x["task"]: ([y["test"] for y in x["layers"]], x["test_items"]) for x in results}


@pytest.mark.slow
def test_the_weights_of_a_native_encoder_score_the_same_in_pytorch(
    synth_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = torch_models.save(torch_models.small("hubert"), tmp_path / "saved")
    monkeypatch.setenv("HUBERT_DIRECTORY", str(saved))
    native, theirs = extract.open_source(str(saved)), of_example("hubert_torch.py:HuBERT")
    assert (native.layers, native.width, native.frames) == (
        theirs.layers,
        theirs.width,
        theirs.frames,
    )
    names = "synth_instrument,synth_beat"
    wanted, found = (scores(x, names, tmp_path, synth_dir) for x in (native, theirs))
    for name, (layers, items) in wanted.items():
        assert found[name][1] == items
        for ours, other in zip(layers, found[name][0], strict=True):
            for score, value in ours.items():
                np.testing.assert_allclose(other[score]["mean"], value["mean"], atol=2e-3)


@pytest.mark.parametrize("name", ["mel_cnn.py:encode", "mert_v1.py:MERT"])
def test_rows_of_another_frame_rate_are_labelled_as_those_of_any_encoder(
    name: str, synth_dir: str, tmp_path: Path
) -> None:
    """So that scores of both can be tested against each other."""
    settings = config(tmp_path, data_dir=synth_dir)
    sources = of_example(name), extract.open_source("logmel")
    assert {x.frame_rate for x in sources} in ({50, 75}, {50, 22_050 / 1024})
    given = [session.Session(x, settings, sharding.make_mesh(), nothing) for x in sources]
    for task in ("synth_key", "synth_instrument", "synth_pitch", "synth_chord"):
        ours, others = (session.prepare(tasks.TASKS[task], "test", {25}, x)[0] for x in given)
        assert ours.features.shape[1] == others.features.shape[1]
        for found, wanted in zip(ours.rows, others.rows, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-9)
        np.testing.assert_array_equal(ours.labels.labels, others.labels.labels)


def test_beats_are_decoded_at_another_frame_rate(synth_dir: str, tmp_path: Path) -> None:
    ((layers, _),) = scores(
        of_example("mel_cnn.py:encode"), "synth_beat", tmp_path, synth_dir
    ).values()
    assert all(0 <= layer["f"]["mean"] <= 1 for layer in layers)


@pytest.fixture(scope="module")
def elsewhere(synth_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features by the example."""
    folder = tmp_path_factory.mktemp("features")
    found = importlib.util.spec_from_file_location("elsewhere", EXAMPLES / "features_elsewhere.py")
    program = importlib.util.module_from_spec(found)
    found.loader.exec_module(program)
    program.main(folder, data_dir=synth_dir)
    return folder


def test_features_computed_elsewhere_are_averaged_by_time(
    elsewhere: Path, synth_dir: str, tmp_path: Path
) -> None:
    source = extract.open_source(f"features:{elsewhere}")
    settings = config(tmp_path, data_dir=synth_dir, limit=3)
    given = session.Session(source, settings, sharding.make_mesh(), nothing)
    prepared, _ = session.prepare(tasks.TASKS["synth_pitch"], "test", {0, 1}, given)
    layer = np.load(elsewhere / "synth_music/test/layer_00.npy").astype("f4")
    frames = np.load(elsewhere / "synth_music/test/frames.npy")
    assert frames.tolist() == [188] * 6  # of 6 s, 31.25 a second
    of_second = layer[2 * 188 : 3 * 188]  # of three records in six: 0, 2 and 5
    for row, begin in enumerate(prepared.rows.begin[12:24]):
        first = begin * 31.25
        near = of_second[int(np.floor(first)) : int(np.ceil(first)) + 17]
        value = prepared.features[0, 12 + row].astype("f4")
        assert near.min(0).min() - 1e-2 <= value.min() and value.max() <= near.max() + 1e-2
    np.testing.assert_allclose(
        prepared.features[0, 12], of_second[:16].mean(0), rtol=1e-3, atol=1e-3
    )


def test_features_of_something_else_are_refused(
    elsewhere: Path, synth_dir: str, tmp_path: Path
) -> None:
    data = host.open_labelled("synth_music", synth_dir, "test", 16_000, 2)
    where = elsewhere / "synth_music" / "test"

    def refused(message: str, file: str, content: object) -> None:
        path = where / file
        before = path.read_bytes()
        if isinstance(content, str):
            path.write_text(content)
        elif isinstance(content, dict):
            np.savez(path.open("wb"), **content)
        elif content is None:
            path.unlink()
        else:
            np.save(path, content)
        try:
            source = extract.open_source(f"features:{elsewhere}")
            with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
                source.bind("synth_music", "test", data)
            assert "\n" not in str(error.value)
        finally:
            path.write_bytes(before)

    layer, frames = (np.load(where / name) for name in ("layer_00.npy", "frames.npy"))
    refused("has features of other records: its digest.txt is abc", "digest.txt", "abc")
    refused("whose digest is", "digest.txt", None)
    refused(r"should be floats \[1128, 40\]", "layer_00.npy", layer[:-1])
    refused("is missing", "layer_00.npy", None)
    refused(r"is damaged", "layer_00.npy", "not an array")
    refused(r"is damaged: No data left in file", "layer_00.npy", "")
    refused(r"is an archive, not one array", "layer_00.npy", {"layer": layer})
    refused(r"layer_00.npy is int64 \[1128, 40\], but should be floats", "layer_00.npy",
            layer.astype(int))  # fmt: skip
    refused(r"numbers of frames of 6 records", "frames.npy", frames[:-1])
    refused("record 0 has 17 frames, but its 6.00 s make 187.5", "frames.npy", frames * 0 + 17)
    good = {"sample_rate": 16_000, "frame_rate": 50, "layers": 1, "width": 2}
    for about, message in (
        ({"layers": 1}, "must have sample_rate, frame_rate"),
        (good | {"layers": 1.5}, "only frame_rate may be a fraction"),
        (good | {"layers": float("inf")}, "a figure is not above 0"),
        (good | {"layers": 10**9}, "more than 1000 layers"),
        ({"sample_rate": 16_000, "frame_rate": 75, "layers": 1, "width": 2}, "213.33 samples"),
    ):
        (tmp_path / stored.ABOUT).write_text(json.dumps(about))
        with pytest.raises(ValueError, match=message):
            extract.open_source(f"features:{tmp_path}")
    with pytest.raises(FileNotFoundError, match=r"has no features.json"):
        extract.open_source(f"features:{tmp_path / 'nowhere'}")


def test_features_that_are_not_finite_are_told_before_a_probe_is_trained(
    elsewhere: Path, synth_dir: str, tmp_path: Path
) -> None:
    file = elsewhere / "synth_music/train/layer_00.npy"
    before = file.read_bytes()
    layer = np.load(file)
    layer[500, 3] = np.nan
    np.save(file, layer)
    settings = config(tmp_path, data_dir=synth_dir)
    try:
        source = extract.open_source(f"features:{elsewhere}")
        given = session.Session(source, settings, sharding.make_mesh(), nothing)
        with pytest.raises(
            ValueError,
            match=r"layer_00.npy has values that are not finite in the frames of record 2",
        ):
            session.prepare(tasks.TASKS["synth_key"], "train", set(), given)
    finally:
        file.write_bytes(before)
