"""synth_polyphony: the stimuli of data_pipelines.composer.polyphony with their answers."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.composer import harmony, polyphony, timbres
from data_pipelines.composer.polyphony import Stimulus
from data_pipelines.shards import RECORDED, Input, ShardedBuilder

ANSWERS = {
    "target": harmony.PITCH_CLASSES,
    "count": tuple(str(count) for count in polyphony.VOICES),
    "lowest": harmony.PITCH_CLASSES,
    "highest": harmony.PITCH_CLASSES,
    "instrument": polyphony.PLAYERS,
    "interval": polyphony.INTERVALS,
    "quality": tuple(polyphony.CHORDS),
}
_NO_ANSWER = -1  # of labels that another set has


@dataclasses.dataclass
class SynthPolyphonyConfig(tfds.core.BuilderConfig):
    """A builder config: sample rate in Hz, clips of each split of each set."""

    sample_rate: int = 16000
    train: int = 576  # multiples of 144 balance every pair of an answer and a factor
    validation: int = 144
    test: int = 288


class Builder(ShardedBuilder):
    """Splits {target,voices,interval,chord}_{train,validation,test}."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar[list[SynthPolyphonyConfig]] = [
        SynthPolyphonyConfig(name="16khz", sample_rate=16000, description="16 kHz, 2.2 hours."),
        SynthPolyphonyConfig(name="24khz", sample_rate=24000, description="24 kHz, 2.2 hours."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    **RECORDED,
                    "voices": np.int32,
                    "octave": np.int32,
                    "timbre": tfds.features.Text(),
                    "detuning": np.int32,
                    "notes": tfds.features.Sequence(
                        {
                            "pitch": np.int32,
                            "cents": np.int32,
                            "instrument": tfds.features.ClassLabel(names=timbres.INSTRUMENTS),
                        }
                    ),
                    **{
                        label: tfds.features.ClassLabel(names=names)
                        for label, names in ANSWERS.items()
                    },
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        """Return the stimuli to render by split; nothing is downloaded or read."""
        config = self.builder_config
        sizes = {split: getattr(config, split) for split in polyphony.SPLITS}
        bytes_each = 2 * round(polyphony.SECONDS * config.sample_rate)  # of audio
        splits = {}
        for number, name in enumerate(polyphony.SETS):
            for kind, (split, stimuli) in enumerate(polyphony.design(name, sizes).items()):
                whole = f"{name}_{split}"
                splits[whole] = [
                    Input(f"{whole}/{i:05d}", bytes_each, (stimulus, (number, kind, i)))
                    for i, stimulus in enumerate(stimuli)
                ]
        return splits

    def _generate_examples(self, source: Input) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the one record of a stimulus."""
        stimulus, seed = source.origin
        audio = polyphony.sound(stimulus, seed, self.sample_rate)
        yield source.path, record(source.path, stimulus, audio)


def record(path: str, stimulus: Stimulus, audio: np.ndarray) -> dict[str, Any]:
    """Return a stimulus and what is known about it as a record of the data set."""
    return {
        "id": path.replace("/", "-"),
        "path": path,
        "start": 0.0,
        "audio": audio,
        "voices": len(stimulus.voices),
        "octave": stimulus.octave,
        "timbre": stimulus.timbre,
        "detuning": stimulus.detuning,
        "notes": {
            "pitch": [voice.pitch for voice in stimulus.voices],
            "cents": [voice.cents for voice in stimulus.voices],
            "instrument": [voice.player for voice in stimulus.voices],
        },
        **dict.fromkeys(ANSWERS, _NO_ANSWER),
        **stimulus.labels,
    }
