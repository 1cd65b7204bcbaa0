"""Bare reads of files, which an input pipeline is measured against."""

import itertools

import numpy as np

from data_pipelines import bare
from tests.support import record_files


def test_every_record_is_read_whole_and_again(tmp_path):
    clips = [record_files.noise(np.random.default_rng(i), 4_000) for i in range(5)]
    folder = record_files.write(tmp_path / "clips/16khz/1.0.0", {"train": [clips[:2], clips[2:]]})
    shards = [str(path) for path in sorted(folder.glob("*tfrecord*"))]
    read = [x.numpy() for x in itertools.islice(bare.records(shards, threads=2), 40)]
    assert len(set(read)) == 5
    assert all(any(clip.tobytes() in record for record in set(read)) for clip in clips)
