"""synth_music in a size that takes seconds."""

import shutil
from pathlib import Path

from data_pipelines.synth_music.synth_music_dataset_builder import Builder, SynthMusicConfig


def build(data_dir: str | Path, train: int = 12, validation: int = 6, test: int = 6) -> None:
    """Build DATA_DIR/synth_music with clips of 6 s, to be found by that name.

    Its config is not the default one, which TFDS writes beside it and which is then looked for.
    """
    size = SynthMusicConfig(
        name="short", seconds=6.0, train=train, validation=validation, test=test
    )
    Builder(data_dir=str(data_dir), config=size).download_and_prepare()
    shutil.rmtree(Path(data_dir) / "synth_music/.config")
