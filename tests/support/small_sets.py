"""Synthesised data sets in sizes that take seconds."""

import shutil
from pathlib import Path

import tensorflow_datasets as tfds

from data_pipelines.shards import ShardedBuilder
from data_pipelines.synth_music.synth_music_dataset_builder import Builder, SynthMusicConfig


def build(builder: type[ShardedBuilder], data_dir: Path, config: tfds.core.BuilderConfig) -> None:
    """Build a data set in a config of one's own, to be found by the data set's name.

    TFDS lets no config have the name of the default one, which it notes beside the data set and
    which is looked for. Without that note, the only config is found.
    """
    builder(data_dir=str(data_dir), config=config).download_and_prepare()
    shutil.rmtree(data_dir / builder.name / ".config")


def music(data_dir: Path, train: int = 12, validation: int = 6, test: int = 6) -> None:
    """Build DATA_DIR/synth_music with clips of 6 s."""
    sizes = {"train": train, "validation": validation, "test": test}
    build(Builder, data_dir, SynthMusicConfig(name="short", seconds=6.0, **sizes))
