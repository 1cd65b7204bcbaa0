"""Small data sets as TFDS lays them out, written in no time for tests and benchmarks."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

FEATURES = {
    "id": tfds.features.Text(),
    "path": tfds.features.Text(),
    "start": tfds.features.Scalar(np.float32),
    "audio": tfds.features.Tensor(
        shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES
    ),
}


def write(
    directory: Path, splits: dict[str, list[Iterable[np.ndarray]]], features: dict = FEATURES
) -> Path:
    """Write DATA_DIR/NAME[/CONFIG]/VERSION from the clips, int16 [n], of each shard of a split."""
    directory.mkdir(parents=True)
    connector = tfds.features.FeaturesDict(features)
    infos = []
    for split, shards in splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=directory, dataset_name="clips", split=split, filetype_suffix="tfrecord"
        )
        lengths, size = [], 0
        for number, clips in enumerate(shards):
            path = template.sharded_filepath(shard_index=number, num_shards=len(shards))
            lengths.append(0)
            with tf.io.TFRecordWriter(str(path)) as writer:
                for clip in clips:
                    name = f"{split}-{number}-{lengths[-1]}"
                    example = {"id": name, "path": name + ".mp3", "start": 0.0, "audio": clip}
                    record = connector.serialize_example({key: example[key] for key in features})
                    writer.write(record)
                    lengths[-1] += 1
                    size += len(record)
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=directory, features=connector, split_infos=infos, check_data=False
    )
    return directory


def noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Draw a clip of white noise, int16 [n]."""
    return rng.integers(-3000, 3000, samples).astype(np.int16)
