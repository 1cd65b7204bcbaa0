"""Planned shards: the plan, the bounds, and builds that fail in every way."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import shards
from data_pipelines.decode import Unusable
from data_pipelines.shards import BuildError, Input, ShardedBuilder

MIB = 1 << 20


class Toy(ShardedBuilder, skip_registration=True):
    """Each input becomes `origin` records of 100 samples, or does what `origin` says."""

    VERSION = tfds.core.Version("1.0.0")
    sample_rate = 100
    inputs: ClassVar[dict[str, list[Input]]] = {}

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return self.inputs

    def _generate_examples(self, source: Input):
        if source.origin == "bad":
            raise Unusable("bad: on purpose")
        if source.origin == "killed":
            os._exit(9)
        if source.origin == "full":
            raise OSError(28, "No space left on device")
        for number in range(source.origin):
            key = f"{source.path}#{number}"
            yield key, {"id": key, "audio": np.full(100, number, np.int16)}


def build(folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int = 1, **inputs: list) -> Toy:
    """Builds inputs given as origins by split."""
    listed = {
        split: [Input(f"{split}/{number}", 1000, origin) for number, origin in enumerate(origins)]
        for split, origins in inputs.items()
    }
    monkeypatch.setattr(Toy, "inputs", listed)
    builder = Toy(data_dir=folder)
    builder.workers = workers
    builder.download_and_prepare()
    return builder


def ids(builder: Toy, split: str) -> list[str]:
    return [record["id"].decode() for record in tfds.as_numpy(builder.as_dataset(split=split))]


def left(folder: Path) -> list[str]:
    """Returns the files below a data_dir, TFDS's own note on configs aside."""
    return [
        path.name for path in folder.rglob("*") if path.is_file() and ".config" not in str(path)
    ]


def test_plan_is_of_the_inputs_alone():
    sizes = np.random.default_rng(0).integers(MIB, 16 * MIB, 500).tolist()
    inputs = [Input(f"{number}.mp3", size, None) for number, size in enumerate(sizes)]
    tasks = shards.plan({"train": inputs[:450], "validation": inputs[450:]})
    again = shards.plan({"train": inputs[449::-1], "validation": inputs[:449:-1]})
    assert tasks == again
    for split, expected in (("train", inputs[:450]), ("validation", inputs[450:])):
        planned = [source for task in tasks if task.split == split for source in task.inputs]
        assert sorted(planned, key=inputs.index) == expected
        assert planned != expected  # in another order than a walk's
    held = [sum(source.size for source in task.inputs) for task in tasks if task.split == "train"]
    assert min(held[:-1]) > 48 * MIB and max(held) < 80 * MIB


@pytest.mark.parametrize(
    "total, tasks", [(1, 1), (40 * MIB, 10), (400 * MIB, 16), (6400 * MIB, 100)]
)
def test_plan_suits_the_size(total, tasks):
    inputs = [Input(str(number), total // 800, None) for number in range(800)]
    assert len(shards.plan({"train": inputs})) == pytest.approx(tasks, abs=1)


def test_plan_gives_a_large_input_its_own_task():
    inputs = [Input(str(number), MIB, None) for number in range(100)]
    large = Input("ten hours", 2000 * MIB, None)
    tasks = shards.plan({"train": [*inputs, large]})
    assert [task.inputs for task in tasks if large in task.inputs] == [(large,)]


def test_shards_hold_what_was_generated_and_stay_below_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "LARGEST_SHARD", 2000)
    builder = build(tmp_path, monkeypatch, train=[3, 40, 1], validation=[2])
    train = [f"train/{source}#{n}" for source, count in enumerate((3, 40, 1)) for n in range(count)]
    assert sorted(ids(builder, "train")) == sorted(train) != ids(builder, "train")
    assert sorted(ids(builder, "validation")) == ["validation/0#0", "validation/0#1"]
    split = builder.info.splits["train"]
    assert split.num_shards == len(split.filepaths) > 3
    assert all(path.stat().length < 2400 for path in split.filepaths)  # 16 bytes more a record
    assert builder.summary.seconds == 46
    for number, shard in enumerate(split.filepaths):  # the lengths that TFDS was told are true
        one = builder.as_dataset(
            split=tfds.core.ReadInstruction("train", number, number + 1, "shard")
        )
        assert len(list(one)) == split.shard_lengths[number], shard


def test_a_split_without_records(tmp_path, monkeypatch):
    builder = build(tmp_path / "one", monkeypatch, train=[1, 1], validation=["bad"])
    assert list(builder.info.splits) == ["train"]
    with pytest.raises(BuildError, match="no file of split train is usable"):
        build(tmp_path / "two", monkeypatch, train=["bad"], validation=[1, 1])
    assert left(tmp_path / "two") == []


def test_lost_files(tmp_path, monkeypatch):
    with pytest.raises(
        BuildError, match=r"3 of 5 audio files are unusable \(3 bad\), more than .* 0.5"
    ):
        build(tmp_path, monkeypatch, train=[1, "bad", "bad", 1, "bad"])
    assert left(tmp_path) == ["1.0.0.skipped.tsv"]
    monkeypatch.setattr(Toy, "max_lost", 0.6)
    builder = build(tmp_path, monkeypatch, train=[1, "bad", "bad", 1, "bad"])
    skipped = (Path(builder.data_path) / "skipped.tsv").read_text()
    assert skipped == "".join(f"train/{number}\tbad: on purpose\n" for number in (1, 2, 4))
    assert "1.0.0.skipped.tsv" not in left(tmp_path)
    monkeypatch.setattr(Toy, "max_lost", 1.0)
    with pytest.raises(BuildError, match="2 of 2"):  # nothing at all is never enough
        build(tmp_path / "none", monkeypatch, train=["bad", "bad"])


def test_failures_keep_what_was_there_and_leave_nothing(tmp_path, monkeypatch):
    """In this process and in workers: a full disk, and a worker that is killed."""
    build(tmp_path / "good", monkeypatch, train=[2])
    before = left(tmp_path / "good")
    for workers in (1, 2):
        with pytest.raises(OSError, match="No space left on device"):
            build(tmp_path / f"full {workers}", monkeypatch, workers, train=[1, "full", 1])
        assert left(tmp_path / f"full {workers}") == []
    with pytest.raises(BuildError, match="a worker process was killed"):
        build(tmp_path / "killed", monkeypatch, 2, train=["killed", 1])
    assert left(tmp_path / "killed") == []
    build(tmp_path / "good", monkeypatch, train=["full"])  # TFDS finds it built, and reads nothing
    assert left(tmp_path / "good") == before


def test_too_little_space_is_seen_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1999))
    with pytest.raises(BuildError, match=r"has 0.00 GB free and the data set needs about 0.00 GB"):
        build(tmp_path, monkeypatch, train=["killed", "killed"])
    assert left(tmp_path) == []


def test_names_in_skipped_are_one_line_each(tmp_path):
    path = epath.Path(tmp_path / "skipped.tsv")
    shards.write_skipped(path, [("a\tb\nc", "why: so"), (os.fsdecode(b"caf\xe9"), "x"), ("ü", "y")])
    assert path.read_bytes() == "a\\tb\\nc\twhy: so\ncaf\\udce9\tx\nü\ty\n".encode()
