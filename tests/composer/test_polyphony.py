"""The stimuli on polyphony: their balance, their sound against their labels, the data set."""

import collections
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from configs import probe as probe_config
from data_pipelines.composer import polyphony
from data_pipelines.composer.polyphony import SETS, Stimulus
from data_pipelines.synth_polyphony.synth_polyphony_dataset_builder import (
    ANSWERS,
    Builder,
    SynthPolyphonyConfig,
    record,
)
from musicssl.features import baselines
from musicssl.probing import report, session, tasks
from tests.support import small_sets

SIZES = {"train": 576, "validation": 144, "test": 288}
RATE = 16_000


@pytest.fixture(scope="module")
def designs() -> dict[str, dict[str, list[Stimulus]]]:
    return {name: polyphony.design(name, SIZES) for name in SETS}


FACTORS = {
    "voices": lambda s: len(s.voices),
    "octave": lambda s: s.octave,
    "timbre": lambda s: s.timbre,
    "detuning": lambda s: s.detuning,
}


@pytest.mark.parametrize("name", tasks.SUITES["poly"])
def test_answers_are_balanced_at_each_level_of_each_factor(name: str, designs) -> None:
    task = tasks.TASKS[name]
    for split, size in SIZES.items():
        stimuli = designs[task.prefix.rstrip("_")][split]
        assert len(stimuli) == size
        for factor in task.factors:
            if (name, factor) == ("poly_count", "voices"):
                continue  # one is the other
            pairs = collections.Counter((FACTORS[factor](s), s.labels[task.label]) for s in stimuli)
            levels = {level for level, _ in pairs}
            even = size / len(levels) / task.outputs
            exact = task.prefix in ("interval_", "chord_") or factor == "voices"
            if name == "poly_highest" or not exact:  # these follow from what is drawn by chance
                for level in levels:
                    each = np.array([pairs[level, answer] for answer in range(task.outputs)])
                    # as even as independent draws are: chi squared over its degrees of freedom
                    assert ((each - each.mean()) ** 2).sum() / each.mean() < 3 * (len(each) - 1)
            else:
                assert len(pairs) == len(levels) * task.outputs
                assert set(pairs.values()) == {even}


def test_what_sounds_is_what_the_labels_say(designs) -> None:
    for name, splits in designs.items():
        for s in (s for stimuli in splits.values() for s in stimuli):
            pitches = [voice.pitch for voice in s.voices]
            players = [voice.player for voice in s.voices]
            assert pitches == sorted(set(pitches))
            assert all(abs(voice.cents) == s.detuning for voice in s.voices)
            classes = [pitch % 12 for pitch in pitches]
            if name == "target":
                assert players.count("voice") == 1
                assert s.labels == {"target": classes[players.index("voice")]}
            elif name == "voices":
                assert len(set(players)) == len(players)
                assert s.labels == {
                    "count": len(pitches) - 1,
                    "lowest": classes[0],
                    "highest": classes[-1],
                    "instrument": ANSWERS["instrument"].index(players[0]),
                }
            elif name == "interval":
                assert s.labels == {"interval": pitches[1] - pitches[0] - 1}
            else:
                steps = tuple(pitch - pitches[0] for pitch in pitches)
                wanted = polyphony.CHORDS[ANSWERS["quality"][s.labels["quality"]]]
                assert steps == wanted
                assert len(steps) == 4
            if name in ("interval", "chord"):
                assert set(players) == {s.timbre}
                assert s.octave == pitches[0] // 12 - 1


def test_no_constellation_is_in_two_splits_and_the_same_are_drawn_again(designs) -> None:
    for name, splits in designs.items():
        several = {
            split: {polyphony.constellation(s) for s in stimuli if len(s.voices) > 1}
            for split, stimuli in splits.items()
        }
        train, validation, test = several.values()
        assert not train & validation and not train & test and not validation & test
        assert polyphony.design(name, SIZES) == splits


def test_outer_voices_do_not_tell_how_many_there_are(designs) -> None:
    stimuli = designs["voices"]["train"]
    for of in (lambda p: p[0], lambda p: p[-1], lambda p: p[-1] - p[0]):
        by_count = collections.defaultdict(list)
        for s in stimuli:
            by_count[len(s.voices)].append(of([voice.pitch for voice in s.voices]))
        means = [np.mean(by_count[count]) for count in range(2, 7)]
        assert np.ptp(means) < 1.0  # semitones, of 96 draws each


def test_more_clips_than_there_are_constellations_are_refused() -> None:
    with pytest.raises(ValueError, match="no constellation of set interval is left"):
        polyphony.design("interval", {"train": 12_000, "test": 144})


def partials(audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies and magnitudes of a long window's spectrum, to a fraction of a cent."""
    window = audio[4000:30_000].astype(float) * np.hanning(26_000)
    size = 2**19
    return np.fft.rfftfreq(size, 1 / RATE), np.abs(np.fft.rfft(window, size))


def test_a_note_alone_has_the_pitch_of_its_label(designs) -> None:
    """The spectrum has its fundamental there, strong and in tune, and nothing an octave below."""
    for name in ("target", "voices"):
        alone = [s for s in designs[name]["test"] if len(s.voices) == 1][::4]
        for number, s in enumerate(alone):
            (voice,) = s.voices
            audio = polyphony.sound(s, (9, number), RATE)
            hertz, magnitude = partials(audio)
            wanted = 440 * 2 ** ((voice.pitch + voice.cents / 100 - 69) / 12)
            near = (hertz > wanted * 2 ** (-1 / 24)) & (hertz < wanted * 2 ** (1 / 24))
            power = magnitude[near] ** 2
            mean = (hertz[near] * power).sum() / power.sum()  # of a vibrato too
            assert abs(1200 * np.log2(mean / wanted)) < 8, (voice, mean, wanted)
            assert magnitude[near].max() > 0.01 * magnitude.max(), voice
            below = (hertz > wanted / 2 * 0.97) & (hertz < wanted / 2 * 1.03)
            assert magnitude[below].max() < 0.05 * magnitude[near].max(), voice


def test_every_note_of_a_chord_sounds(designs) -> None:
    for number, s in enumerate(designs["chord"]["test"][::24]):
        hertz, magnitude = partials(polyphony.sound(s, (9, number), RATE))
        for voice in s.voices:
            wanted = 440 * 2 ** ((voice.pitch + voice.cents / 100 - 69) / 12)
            near = np.abs(np.log2(hertz / wanted + 1e-9)) < 1 / 36
            between = np.abs(np.abs(np.log2(hertz / wanted + 1e-9)) - 1 / 24) < 1 / 200
            assert magnitude[near].max() > 2 * np.median(magnitude[between]), (s.timbre, voice)


def test_loudness_does_not_tell_how_many_sound(designs) -> None:
    levels = collections.defaultdict(list)
    for number, s in enumerate(designs["voices"]["test"][:150]):
        audio = polyphony.sound(s, (8, number), RATE)
        assert audio.dtype == np.int16 and len(audio) == 2 * RATE
        levels[len(s.voices)].append(10 * np.log10(np.mean((audio / 32768.0) ** 2)))
        assert -36.5 < levels[len(s.voices)][-1] < -21.5  # none is held back by its peak
    means = [np.mean(values) for values in levels.values()]
    assert np.ptp(means) < 5  # of draws over 14 dB, 25 each: three standard errors


def spectra(stimuli: list[Stimulus], seed: int) -> np.ndarray:
    """The constant-Q spectrum of each clip, averaged over its middle second: [clips, 84]."""
    audio = np.stack([polyphony.sound(s, (seed, i), RATE) for i, s in enumerate(stimuli)])
    audio = audio[:, RATE // 2 : -RATE // 2]
    blocks = np.split(audio.astype(np.float32) / 32768, len(audio) // 24)
    return np.concatenate([mean_cqt(block) for block in blocks])


@jax.jit
def mean_cqt(audio: jax.Array) -> jax.Array:
    return baselines.cqt(audio).mean(1)


@pytest.mark.slow
def test_a_spectrum_tells_a_note_alone_and_loses_it_among_six(designs) -> None:
    found = {}
    for count in (1, 6):
        train, test = (
            [s for s in designs["voices"][split] if len(s.voices) == count]
            for split in ("train", "test")
        )
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        probe.fit(spectra(train, 1), [s.labels["highest"] for s in train])
        found[count] = probe.score(spectra(test, 2), [s.labels["highest"] for s in test])
    assert found[1] > 0.9
    assert found[6] < 0.5


TINY = SynthPolyphonyConfig(name="tiny", train=12, validation=3, test=3)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    small_sets.build(Builder, folder, TINY)
    return folder


def test_a_build_is_the_same_whatever_its_workers(data_dir: Path, tmp_path: Path) -> None:
    """A shard holds many clips, so that 12 splits make 12 tasks."""
    builder = Builder(data_dir=tmp_path, config=TINY)
    builder.workers = 2
    builder.download_and_prepare()
    one, two = (
        {path.name: path.read_bytes() for path in folder.rglob("*.tfrecord*")}
        for folder in (data_dir, tmp_path)
    )
    assert one == two
    assert len(one) >= 12
    assert {split.num_examples for split in builder.info.splits.values()} == {12, 3}


def test_a_record_is_a_stimulus_with_its_answers(data_dir: Path) -> None:
    builder = Builder(data_dir=data_dir, config=TINY)
    sizes = {split: getattr(TINY, split) for split in polyphony.SPLITS}
    stimuli = polyphony.design("chord", sizes)["test"]
    for example in tfds.as_numpy(builder.as_dataset(split="chord_test")):
        path = example["path"].decode()
        number = int(path.rpartition("/")[2])
        audio = polyphony.sound(stimuli[number], (3, 2, number), RATE)
        np.testing.assert_array_equal(example["audio"], audio)
        wanted = record(path, stimuli[number], audio)
        for label in ANSWERS:
            assert example[label] == wanted[label]
        assert example["quality"] >= 0 > example["target"]
        assert example["notes"]["pitch"].tolist() == wanted["notes"]["pitch"]
    for label, names in ANSWERS.items():
        assert builder.info.features[label].names == list(names)


def test_probing_scores_each_level_and_draws_the_curves(data_dir: Path, tmp_path: Path) -> None:
    config = probe_config.get_config("polyphony")
    config.encoder, config.data_dir, config.tasks = (
        "chroma",
        str(data_dir),
        "poly_pitch,poly_interval",
    )
    config.cache, config.results = str(tmp_path / "features"), str(tmp_path / "out")
    config.epochs, config.seeds = 1, (1, 2)
    table = session.run(config)
    found = json.loads((tmp_path / "out/results.json").read_text())["tasks"]
    assert list(found) == ["poly_pitch", "poly_interval"]
    for name, task in found.items():
        assert list(task["factors"]) == ["all", *tasks.TASKS[name].factors]
        whole = task["factors"]["all"][0]["sources"]["0"]["mean"]
        assert whole == pytest.approx(task["layers"][0]["test"]["accuracy"]["mean"])
        for factor, levels in task["factors"].items():
            counts = [level["items"] for level in levels]
            means = [level["sources"]["0"]["mean"] for level in levels]
            assert sum(counts) == 3, factor
            assert np.dot(counts, means) / 3 == pytest.approx(whole), factor
    assert "| pitch class of the sung note | voices |" in table
    report.compare([tmp_path / "out"] * 2, tmp_path / "both")
    for picture in ("out/factors.png", "both/compare-factors.png"):
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"


SMALL = {"train": 2, "validation": 1, "test": 1}
tf.test.TestCase.test_session.__test__ = False  # a helper whose name looks like a test's


class TestBuilder(tfds.testing.DatasetBuilderTestCase):
    """TFDS's own checks of a builder, on a few clips."""

    DATASET_CLASS = Builder
    SPLITS = {f"{of}_{kind}": n for of in SETS for kind, n in SMALL.items()}  # noqa: RUF012
    BUILDER_CONFIG_NAMES_TO_TEST = (SynthPolyphonyConfig(name="small", **SMALL),)

    @classmethod
    def setUpClass(cls) -> None:
        cls.EXAMPLE_DIR = tempfile.mkdtemp()
        super().setUpClass()
