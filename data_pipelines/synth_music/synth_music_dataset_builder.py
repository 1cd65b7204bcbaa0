"""synth_music: clips of data_pipelines.composer with everything that is known about them."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.composer import harmony, synth, timbres, varied
from data_pipelines.shards import RECORDED, Input, ShardedBuilder

# Splits count their seeds from far apart, and from multiples of 24: see synth.clip on keys.
FIRST_SEED = {"train": 0, "validation": 24_000_000, "test": 48_000_000}


@dataclasses.dataclass
class SynthMusicConfig(tfds.core.BuilderConfig):
    """A builder config: sample rate in Hz, seconds of a clip, clips of each split.

    varied: whether clips are those of composer/varied.py, which are there to learn from.
    """

    sample_rate: int = 16000
    seconds: float = 30.0
    train: int = 240
    validation: int = 48
    test: int = 192
    varied: bool = False


class Builder(ShardedBuilder):
    """Builder of synth_music."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "First release.",
        "1.1.0": "192 test clips instead of 48, the first 48 of which are the same.",
    }
    BUILDER_CONFIGS: ClassVar[list[SynthMusicConfig]] = [
        SynthMusicConfig(name="16khz", sample_rate=16000, description="16 kHz, 4 hours."),
        SynthMusicConfig(name="24khz", sample_rate=24000, description="24 kHz, 4 hours."),
        SynthMusicConfig(
            name="16khz_varied",
            train=2400,
            test=48,
            varied=True,
            description="16 kHz, 20.8 hours, varied.",
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    **RECORDED,
                    "key": tfds.features.ClassLabel(names=harmony.KEYS),
                    "tempo": np.float32,
                    "beats": tfds.features.Sequence({"time": np.float32, "position": np.int32}),
                    "chords": tfds.features.Sequence(
                        {
                            "root": np.int32,
                            "quality": tfds.features.ClassLabel(names=list(harmony.QUALITIES)),
                        }
                    ),
                    "notes": tfds.features.Sequence(
                        {
                            "onset": np.float32,
                            "offset": np.float32,
                            "pitch": np.int32,
                            "instrument": tfds.features.ClassLabel(names=timbres.INSTRUMENTS),
                        }
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        """Return the clips to render by split; nothing is downloaded or read."""
        config = self.builder_config
        size = 2 * round(config.seconds * config.sample_rate)  # bytes of audio
        inputs = {}
        for split, first in FIRST_SEED.items():
            seeds = range(first, first + getattr(config, split))
            inputs[split] = [Input(f"{split}/{seed:08d}", size, seed) for seed in seeds]
        return inputs

    def _generate_examples(self, source: Input) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the one record of a clip; `source.origin` is its seed."""
        config = self.builder_config
        compose = varied.clip if config.varied else synth.clip
        clip = compose(source.origin, config.seconds, config.sample_rate)
        yield source.path, record(source.path, clip)


def record(path: str, clip: synth.Clip) -> dict[str, Any]:
    """Return a clip and its annotations as a record of the data set."""
    return {
        "id": path.replace("/", "-"),
        "path": path,
        "start": 0.0,
        "audio": clip.audio,
        "key": clip.key,
        "tempo": clip.tempo,
        "beats": {"time": clip.beats, "position": clip.positions},
        "chords": {
            "root": [chord.root for chord in clip.chords],
            "quality": [chord.quality for chord in clip.chords],
        },
        "notes": {
            "onset": [note.onset for note in clip.notes],
            "offset": [note.offset for note in clip.notes],
            "pitch": [int(note.pitch) for note in clip.notes],
            "instrument": [note.instrument for note in clip.notes],
        },
    }
