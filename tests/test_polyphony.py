"""The stimuli on polyphony: their balance, their sound against their labels, the data set."""

import collections
import tempfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipelines import polyphony
from data_pipelines.polyphony import SETS, Stimulus
from data_pipelines.synth_polyphony.synth_polyphony_dataset_builder import (
    ANSWERS,
    Builder,
    SynthPolyphonyConfig,
    record,
)
from musicssl import tasks

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


TINY = SynthPolyphonyConfig(name="tiny", train=12, validation=3, test=3)


def test_a_build_is_the_same_whatever_its_workers(tmp_path) -> None:
    """A shard holds many clips, so that 12 splits make 12 tasks."""
    found = []
    for workers in (1, 2):
        builder = Builder(data_dir=tmp_path / f"{len(found)}", config=TINY)
        builder.workers = workers
        builder.download_and_prepare()
        folder = tmp_path / f"{len(found)}"
        found.append({p.name: p.read_bytes() for p in folder.rglob("*.tfrecord*")})
    assert found[0] == found[1]
    assert len(found[0]) >= 12
    assert {split.num_examples for split in builder.info.splits.values()} == {12, 3}
    for example in tfds.as_numpy(builder.as_dataset(split="chord_test")):
        path = example["path"].decode()
        number = int(path.rpartition("/")[2])
        sizes = {split: getattr(TINY, split) for split in polyphony.SPLITS}
        stimulus = polyphony.design("chord", sizes)["test"][number]
        audio = polyphony.sound(stimulus, (3, 2, number), RATE)
        np.testing.assert_array_equal(example["audio"], audio)
        wanted = record(path, stimulus, audio)
        for label in ANSWERS:
            assert example[label] == wanted[label]
        assert example["quality"] >= 0 > example["target"]
        assert example["notes"]["pitch"].tolist() == wanted["notes"]["pitch"]
    for label, names in ANSWERS.items():
        assert builder.info.features[label].names == list(names)


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
