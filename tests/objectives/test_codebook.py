"""The codebook of a run: fitted once, taken up again, refused where it does not fit."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import musichubert
from musicssl import audio
from musicssl.objectives import codebook, kmeans, targets
from musicssl.runtime import sharding
from tests.support import torch_models

LEAVES = {
    "batch_size": 4,
    "data.crop_frames": 30,
    "teacher.clusters": 6,
    "teacher.batches": 3,
    "teacher.sample": 200,
    "teacher.restarts": 2,
    "teacher.polish": 2,
    "teacher.passes": 4,
    "teacher.tolerance": -1.0,  # all passes, also where k-means has settled before
}

pytestmark = pytest.mark.usefixtures("compiled_once")


class Stopped(Exception):
    """Where a test ends a fit."""


class Source:
    """A run's batches of chords in noise, counted."""

    def __init__(self, config: ml_collections.ConfigDict, silent: bool = False) -> None:
        self.config, self.silent, self.passes = config, silent, 0

    def open(self) -> Iterator[np.ndarray]:
        self.passes += 1
        samples = audio.crop_samples(self.config.data.crop_frames)
        rng = np.random.default_rng(0)
        while True:
            shape = self.config.batch_size, samples
            if self.silent:
                yield np.zeros(shape, np.int16)
                continue
            pitches = rng.uniform(100, 3000, (self.config.batch_size, 3, 1))
            chords = np.sin(2 * np.pi * pitches * np.arange(samples) / 16_000).sum(1)
            level = rng.uniform(200, 8000, (self.config.batch_size, 1))
            yield (level * chords + rng.normal(0, 100, shape)).astype(np.int16)


def config_of(**leaves: object) -> ml_collections.ConfigDict:
    config = musichubert.get_config("demo")
    leaves = {name.replace("__", "."): value for name, value in leaves.items()}
    config.update_from_flattened_dict(LEAVES | leaves)
    return config


def get(
    config: ml_collections.ConfigDict,
    workdir: Path,
    source: Source | None = None,
    say: Callable[[str], None] = print,
) -> np.ndarray:
    """The workdir's codebook, of a run that has one."""
    (quantizer,) = get_all(config, workdir, source, say).values()
    assert quantizer.keys() == {"codebook"}
    return quantizer["codebook"]


def get_all(
    config: ml_collections.ConfigDict,
    workdir: Path,
    source: Source | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, np.ndarray]]:
    """The workdir's quantisers, as main asks for them."""
    mesh = sharding.make_mesh()
    frozen, digest = codebook.frozen_encoder(config, mesh)
    workdir.mkdir(exist_ok=True)
    source = source or Source(config)
    quantizers = codebook.get(config, workdir, mesh, frozen, digest, source.open, say)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(quantizers))
    return jax.tree.map(np.asarray, quantizers)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A Hugging Face directory of a small HuBERT with two layers."""
    path = tmp_path_factory.mktemp("teacher")
    return torch_models.save(torch_models.small("hubert"), path, normalize=False)


def layer(teacher: Path, **leaves: object) -> ml_collections.ConfigDict:
    changes = {"teacher__feature": "layer", "teacher__encoder": str(teacher), "teacher__layer": 1}
    return config_of(**changes | leaves)


@pytest.mark.parametrize("feature", ["mfcc", "partials", "layer"])
def test_a_codebook_is_fitted_once_and_then_read(tmp_path, teacher, feature):
    config = layer(teacher) if feature == "layer" else config_of(teacher__feature=feature)
    source, said = Source(config), []
    codes = get(config, tmp_path, source, said.append)
    assert codes.shape == (6, {"mfcc": 39, "partials": 119, "layer": 48}[feature])
    assert source.passes == 1 + 4  # the sample, and a pass each
    assert said[0] == "fitting 6 codes to 3 batches"
    assert [line.split()[2] for line in said[1:]] == ["0/4", "1/4", "2/4", "3/4", "4/4"]
    assert all("of the codes used, perplexity" in line for line in said[1:])
    assert {path.name for path in tmp_path.iterdir()} == {"codebook.npz", "codebook.png"}
    again = Source(config)
    np.testing.assert_array_equal(get(config, tmp_path, again), codes)
    assert again.passes == 0


def test_it_is_that_of_k_means_on_the_features_of_the_batches(tmp_path):
    config = config_of()
    codes = get(config, tmp_path)
    batches = Source(config).open()
    sounds = [audio.to_float(jax.numpy.asarray(next(batches))) for _ in range(3)]
    frames = np.concatenate([audio.mfcc(x)[:, ::2].reshape(-1, 39) for x in sounds])
    assert len(frames) == 3 * 4 * 30
    t = config.teacher
    settings = kmeans.Settings(
        t.clusters, config.seed, t.sample, t.restarts, t.polish, t.passes, t.tolerance
    )
    state = kmeans.fit(lambda _: np.split(frames, 3), settings)
    np.testing.assert_allclose(codes, state.codebook, atol=1e-3)


@pytest.mark.parametrize("feature", ["mfcc", "layer"])
def test_a_fit_goes_on_to_the_same_bits(tmp_path, teacher, feature):
    config = config_of() if feature == "mfcc" else layer(teacher)
    whole = get(config, tmp_path / "whole")
    for stop in ("pass 0/4", "pass 2/4", "pass 4/4"):
        workdir = tmp_path / stop[5]

        def stopping(line: str, stop: str = stop) -> None:
            if stop in line:
                raise Stopped

        with pytest.raises(Stopped):
            get(config, workdir, say=stopping)
        assert not (workdir / "codebook.npz").exists()
        assert len(list(workdir.glob("codebook.*.state.npz"))) == 1
        source, said = Source(config), []
        np.testing.assert_array_equal(get(config, workdir, source, said.append), whole)
        assert said[0].endswith("resuming")
        assert source.passes == 4 - int(stop[5])
        assert not list(workdir.glob("codebook.*.state.npz"))


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 8},
        {"seed": 2},
        {"teacher__ceps": 20},
        {"data__name": "other"},
    ],
)
def test_a_fit_of_anything_else_begins_anew(tmp_path, change):
    def stopping(line: str) -> None:
        if "pass 0/4" in line:
            raise Stopped

    with pytest.raises(Stopped):
        get(config_of(), tmp_path, say=stopping)
    said = []

    def recording(line: str) -> None:
        said.append(line)
        stopping(line)

    with pytest.raises(Stopped):
        get(config_of(**change), tmp_path, say=recording)
    assert "resuming" not in said[0]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("**/*") if path.is_file()}


def refusal(config: ml_collections.ConfigDict, workdir: Path, **options: object) -> str:
    """What is said where a codebook or its encoder is refused: one line, nothing written."""
    before = contents(workdir)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        get(config, workdir, **options)
    assert contents(workdir) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_codebook_of_another_feature_or_size_is_refused(tmp_path, teacher):
    get(config_of(), tmp_path)
    for config, *wanted in (
        (config_of(teacher__ceps=20), "'ceps': 13", "'ceps': 20"),
        (layer(teacher), "'feature': 'mfcc'", "'feature': 'layer'"),
        (config_of(teacher__clusters=7), "6 clusters", "asks for 7"),
    ):
        said = refusal(config, tmp_path)
        assert all(x in said for x in (*wanted, "codebook.npz", "restore the config, or delete"))


def test_a_codebook_of_another_layer_or_encoder_is_refused(tmp_path, teacher):
    get(layer(teacher), tmp_path)
    assert "'layer': 1" in (said := refusal(layer(teacher, teacher__layer=2), tmp_path))
    assert "'layer': 2" in said
    other = tmp_path.parent / f"{tmp_path.name}-other"
    torch_models.save(
        torch_models.make("hubert", **torch_models.SMALL | {"hidden_size": 64}), other
    )
    assert "'encoder':" in refusal(layer(other), tmp_path)


def test_fewer_frames_than_clusters_are_refused(tmp_path):
    said = refusal(config_of(teacher__clusters=361, teacher__sample=400), tmp_path)
    assert "teacher.batches = 3 gives k-means 360 frames" in said
    assert "teacher.clusters = 361: raise it, or use fewer clusters" in said
    said = refusal(config_of(teacher__clusters=201), tmp_path)
    assert "teacher.sample = 200" in said and "teacher.clusters = 201: raise it" in said


@pytest.mark.parametrize("number", [-1, 3])
def test_a_layer_that_does_not_exist_is_refused(tmp_path, teacher, number):
    said = refusal(layer(teacher, teacher__layer=number), tmp_path)
    assert f"teacher.layer is {number}, but {teacher} has layers 0 to 2: choose one" in said


def test_a_second_iteration_without_a_teacher_is_refused(tmp_path):
    said = refusal(musichubert.get_config("k2000_iter2"), tmp_path)
    assert "teacher.encoder is empty: give --config.teacher.encoder=DIR" in said
    said = refusal(layer(tmp_path / "nowhere"), tmp_path)
    assert "nowhere holds no encoder: give a workdir" in said
    said = refusal(config_of(teacher__feature="pitch"), tmp_path)
    assert "teacher.feature is 'pitch': use one of mfcc, partials, mel, cqt, chroma, onset" in said


def test_another_sample_rate_is_refused(tmp_path, teacher):
    said = refusal(layer(teacher, data__sample_rate=24_000), tmp_path)
    assert f"{teacher} takes audio of 16000 Hz, but data.sample_rate is 24000: use audio of" in said
    said = refusal(config_of(data__sample_rate=24_000), tmp_path)
    assert "data.sample_rate is 24000 and teacher.feature 'mfcc' needs 16000 Hz: use" in said


def test_an_encoder_of_another_frame_rate_is_refused(tmp_path):
    options = {"conv_stride": [5, 2, 2, 2, 2, 2, 1]}  # 100 Hz
    path = tmp_path / "model"
    torch_models.save(torch_models.make("hubert", **torch_models.SMALL | options), path)
    said = refusal(layer(path), tmp_path)
    assert "conv_stride" in said


def test_degenerate_labels_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"the fitted codebook is degenerate: perplexity 1\.00"):
        get(config_of(), tmp_path, Source(config_of(), silent=True))
    assert not (tmp_path / "codebook.npz").exists()


def test_an_empty_histogram_is_refused():
    counts = np.zeros(4, np.int64)
    state = kmeans.State(np.zeros((4, 39), np.float32), counts, np.ones(1), finished=True)
    with pytest.raises(ValueError, match="over 0 frames"):
        codebook.check({"mfcc": state}, config_of())
    codebook.check({"mfcc": state._replace(counts=counts + 5)}, config_of())


def test_the_histogram_is_drawn(tmp_path):
    """Its bars fall from left to right, and one code in four is not used."""
    counts = np.array([400, 0, 300, 100])
    state = kmeans.State(np.zeros((4, 39), np.float32), counts, np.ones(1), finished=True)
    codebook.draw({"mfcc": state}, tmp_path / "codebook.png")
    with Image.open(tmp_path / "codebook.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    bars = np.abs(pixels - (0x33, 0x65, 0x8A)).sum(-1) < 30
    heights = bars.sum(0)
    columns = np.flatnonzero(heights)
    assert columns.size > 200
    heights = heights[columns[0] + 2 : columns[-1] - 2]
    assert heights[0] > 3 * heights[-1] > 0
    assert np.all(np.diff(heights) <= 1)


def test_the_definition_says_what_the_columns_are(teacher):
    def definition(config: ml_collections.ConfigDict, digest: str = "") -> dict:
        (target,) = targets.of(config)
        return codebook.definition(config, target, digest)

    assert definition(config_of(teacher__ceps=20)) == {
        "feature": "mfcc",
        "ceps": 20,
        "differences": 2,
        "sample_rate": 16_000,
        "frames_per_second": 50,
    }
    of_partials = definition(config_of(teacher__feature="partials"))
    constants = {"bands": 80, "around": 9, "quiet": -12.0, "timbre": 0.03}
    assert constants.items() <= of_partials.items() and of_partials["ceps"] == 13
    of_layer = definition(layer(teacher), "abc")
    assert of_layer["layer"] == 1 and of_layer["encoder"] == "abc"
    assert json.loads(json.dumps(of_layer)) == of_layer
    drawn = definition(config_of(teacher__feature="", teacher__targets="mel:random:9"))
    assert {"feature": "mel", "quantizer": "random", "dimensions": 16}.items() <= drawn.items()


SEVERAL = "mfcc:kmeans:6,mel:random:2x5,chroma:kmeans:4"


def several(**leaves: object) -> ml_collections.ConfigDict:
    given = {"teacher__feature": "", "teacher__targets": SEVERAL}
    return config_of(**given | {"hubert__min_label_perplexity": 1.1} | leaves)


def test_several_targets_are_fitted_in_the_same_passes(tmp_path):
    """Each to the codebook that it has alone."""
    config, said = several(), []
    source = Source(config)
    together = get_all(config, tmp_path / "together", source, said.append)
    assert source.passes == 1 + 4  # as many as one of them takes
    assert together.keys() == {"mfcc", "mel_1", "mel_2", "chroma"}
    codes = "6 codes of mfcc, 5 codes of mel_1, 5 codes of mel_2, 4 codes of chroma"
    assert said[0] == f"fitting {codes} to 3 batches"
    assert said[1].startswith("codebook pass 0/4  mfcc:  seeded  ")
    assert "  mel_1:  measured  mel_2:  measured  chroma:  seeded  " in said[1]
    assert said[2].startswith("codebook pass 1/4  mfcc:  inertia ")
    assert all(line.count("of the codes used, perplexity") == 4 for line in said[2:])
    for word in SEVERAL.split(","):
        alone = get_all(several(teacher__targets=word), tmp_path / word[:3])
        for name, arrays in alone.items():
            assert arrays.keys() == together[name].keys()
            for array, values in arrays.items():
                np.testing.assert_allclose(values, together[name][array], atol=1e-4)
    again = Source(config)
    read = get_all(config, tmp_path / "together", again)
    assert again.passes == 0 and jax.tree.structure(read) == jax.tree.structure(together)
    for ours, theirs in zip(*map(jax.tree.leaves, (read, together)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_random_codebooks_take_a_pass_to_measure_and_one_to_count(tmp_path):
    config, said = several(teacher__targets="mel:random:2x5"), []
    source = Source(config)
    get_all(config, tmp_path, source, said.append)
    assert source.passes == 2
    assert said[1] == "codebook pass 0/1  mel_1:  measured  mel_2:  measured"
    assert said[2].startswith("codebook pass 1/1  mel_1:  ")


def test_fits_of_several_targets_go_on_to_the_same_bits(tmp_path):
    config = several()
    whole = get_all(config, tmp_path / "whole")
    for stop in ("pass 0/4", "pass 1/4"):
        workdir = tmp_path / stop[5]

        def stopping(line: str, stop: str = stop) -> None:
            if stop in line:
                raise Stopped

        with pytest.raises(Stopped):
            get_all(config, workdir, say=stopping)
        source, said = Source(config), []
        found = get_all(config, workdir, source, said.append)
        assert said[0].endswith("resuming") and source.passes == 4 - int(stop[5])
        assert not list(workdir.glob("codebook.*.state.npz"))
        for ours, theirs in zip(*map(jax.tree.leaves, (found, whole)), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_what_several_targets_refuse(tmp_path, teacher):
    said = refusal(several(teacher__targets="mfcc:kmeans:201,mel:random:500"), tmp_path)
    assert "teacher.sample = 200 gives k-means 200 frames, fewer than the 201 codes of mfcc" in said
    said = refusal(several(teacher__targets="mel:random:5,layer"), tmp_path)
    assert "teacher.encoder is empty" in said
    encoder = {"teacher__encoder": str(teacher), "teacher__layer": 1}
    leaves = encoder | {"teacher__targets": "layer,onset", "data__sample_rate": 24_000}
    said = refusal(several(**leaves), tmp_path)
    assert "data.sample_rate is 24000 and teacher.feature 'onset' needs 16000 Hz" in said
    get_all(several(teacher__targets="mel:random:5,layer:kmeans:4", **encoder), tmp_path)
    said = refusal(several(teacher__targets="mel:random:5"), tmp_path)
    assert "is a codebook of" in said and "restore the config, or delete the file" in said
    said = refusal(several(teacher__targets="mel:random:6,layer:kmeans:4", **encoder), tmp_path)
    assert "has 5 clusters of mel, but the config asks for 6" in said


def test_a_degenerate_codebook_among_several_is_named(tmp_path):
    config = several(teacher__targets="chroma:random:5,mel:random:5")
    with pytest.raises(ValueError, match="the fitted codebook of chroma is degenerate"):
        get_all(config, tmp_path, Source(config, silent=True))
    assert not (tmp_path / "codebook.npz").exists()


@pytest.mark.parametrize("count", [2, 3])
def test_the_picture_has_a_panel_for_each_target(tmp_path, count):
    counts = np.arange(1, 5)
    state = kmeans.State(np.zeros((4, 39), np.float32), counts, np.ones(1), finished=True)
    codebook.draw({f"mel_{i + 1}": state for i in range(count)}, tmp_path / "codebook.png")
    with Image.open(tmp_path / "codebook.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    bars = np.abs(pixels - (0x33, 0x65, 0x8A)).sum(-1) < 30
    rows = np.array_split(bars, -(-count // 2))
    panels = [panel for row in rows for panel in np.array_split(row, 2, axis=1)]
    drawn = [bool(panel.any()) for panel in panels]
    assert drawn == [True] * count + [False] * (len(panels) - count)
