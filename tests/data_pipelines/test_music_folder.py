"""The music_folder data set on a fabricated tree: mixed kinds, rates and names, and damage."""

import os
import tempfile
from collections import defaultdict
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import tensorflow as tf
import tensorflow_datasets as tfds
from apache_beam.options.pipeline_options import PipelineOptions

from data_pipelines.music_folder import tree
from data_pipelines.music_folder.music_folder_dataset_builder import Builder
from data_pipelines.shards import BuildError

RATE = 16_000
STRANGE = os.fsdecode(b"caf\xe9.wav")  # a name that is not UTF-8
SKIPPED = {
    "broken/a\\ttab.wav": "no sound: digital silence",
    "broken/cut.wav": "truncated: 5.0 of 10.0 s are there",
    "broken/empty.mp3": "empty: a file of 0 bytes",
    "broken/gone.wav": "unreadable: a broken link or not a regular file",
    "broken/infinite.wav": "not finite: NaN or infinite samples",
    "broken/locked.m4p": "locked: protected by DRM",
    "broken/short.wav": "too short: 1.90 s, the minimum is 2 s",
    "broken/text.flac": "not audio, or a kind that cannot be read: Format not recognised",
}


def noise(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """Returns noise, float32 [n, channels], another for each length."""
    generator = np.random.default_rng(round(1000 * seconds))
    return generator.normal(0, 0.1, (round(rate * seconds), channels)).astype(np.float32)


def write(path: Path, audio: np.ndarray, rate: int = RATE, **options: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(os.fsencode(path), "w", rate, audio.shape[1], **options) as file:
        for start in range(0, len(audio), 4096):
            file.write(audio[start : start + 4096])


def good_files(root: Path) -> None:
    write(root / "artist/album 1/long.wav", noise(65.0))
    write(root / "artist/album 1/thirty one.flac", noise(31.0, 22_050), 22_050)
    gap = noise(130.0)
    gap[30 * RATE : 60 * RATE] = 0
    gap[60 * RATE : 90 * RATE] *= 1e-4  # the noise of rounding
    gap[90 * RATE : 120 * RATE] = 0.1
    write(root / "artist/album 2/gap.wav", gap)
    write(root / "B ünï côdé/ä (live) 'b'.mp3", noise(10.0, 44_100, 2), 44_100)
    write(root / "C/c.ogg", noise(8.0, 32_000, 2), 32_000)
    write(root / "C/D/E/F/deep.AIFF", noise(3.0, 48_000), 48_000, subtype="PCM_24")
    write(root / "G" / STRANGE, noise(5.0))


def bad_files(folder: Path) -> None:
    write(folder / "a\ttab.wav", noise(5.0) * 0)
    write(folder / "cut.wav", noise(10.0))
    os.truncate(folder / "cut.wav", 160_044)
    (folder / "empty.mp3").touch()
    (folder / "gone.wav").symlink_to("nowhere.wav")
    write(folder / "infinite.wav", np.full((64_000, 1), np.inf), subtype="FLOAT")
    (folder / "locked.m4p").write_bytes(b"\0\0\0\x0cftypM4P \0\0\0\x10moov\0\0\0\x08sinf")
    write(folder / "short.wav", noise(1.9))
    (folder / "text.flac").write_text("no music")


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with seven good files, eight bad ones and some that are not meant."""
    root = tmp_path_factory.mktemp("music")
    good_files(root)
    bad_files(root / "broken")
    for other in ("notes.txt", "C/cover.jpg", "C/._c.ogg", ".trash/old.wav"):
        (root / other).parent.mkdir(exist_ok=True)
        (root / other).write_bytes(b"x")
    (root / "C/again").symlink_to(root / "artist")
    (root / "C/loop").symlink_to(root)
    os.link(root / "C/c.ogg", root / "G/same.ogg")
    return root


def build(
    data_dir: Path, music: Path, workers: int = 1, config: str = "16khz", beam: str = ""
) -> Builder:
    builder = Builder(data_dir=data_dir, config=config)
    builder.workers, builder.max_lost = workers, 0.6
    options = PipelineOptions(beam.split()) if beam else None
    download = tfds.download.DownloadConfig(manual_dir=music, beam_options=options)
    builder.download_and_prepare(download_config=download)
    return builder


@pytest.fixture(scope="module")
def built(music: Path, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return build(tmp_path_factory.mktemp("data"), music)


def records(builder: Builder) -> dict[str, list[dict]]:
    """Returns the records of each path in the order of their starts."""
    found = defaultdict(list)
    for split in builder.info.splits:
        for record in tfds.as_numpy(builder.as_dataset(split=split)):
            found[record["path"].decode()].append(record | {"split": split})
    return {path: sorted(of, key=lambda record: record["start"]) for path, of in found.items()}


def shard_bytes(builder: Builder) -> dict[str, bytes]:
    folder = Path(builder.data_path)
    return {path.name: path.read_bytes() for path in folder.iterdir() if "info" not in path.name}


def test_records_are_the_files_in_segments(built, music):
    found = records(built)
    starts = {path: [float(record["start"]) for record in of] for path, of in found.items()}
    assert starts == {
        "artist/album 1/long.wav": [0, 30, 60],
        "artist/album 1/thirty one.flac": [0],  # the last second is too short for a record
        "artist/album 2/gap.wav": [0, 120],  # nothing to hear between
        "B ünï côdé/ä (live) 'b'.mp3": [0],
        "C/c.ogg": [0],
        "C/D/E/F/deep.AIFF": [0],
        r"G/caf\udce9.wav": [0],
    }
    ids = [record["id"].decode() for of in found.values() for record in of]
    assert len(set(ids)) == len(ids) == 10 and "C/c.ogg#0000" in ids
    for path, of in found.items():
        source = music / (f"G/{STRANGE}" if path.startswith("G/") else path)
        audio, rate = soundfile.read(os.fsencode(source), dtype="float64", always_2d=True)
        whole = 32_768 * soxr.resample(audio.mean(axis=1), rate, RATE)  # at once, in float64
        for record in of:
            start = int(record["start"]) * RATE
            assert record["audio"].dtype == np.int16
            assert len(record["audio"]) == min(30 * RATE, len(whole) - start)
            expected = np.clip(whole[start : start + 30 * RATE], -32_768, 32_767)
            np.testing.assert_allclose(record["audio"], expected, atol=0.51 if rate == RATE else 2)


def test_bad_files_are_listed_and_counted(built):
    lines = (Path(built.data_path) / "skipped.tsv").read_text().splitlines()
    assert dict(line.split("\t") for line in lines) == SKIPPED
    assert built.summary.files == 15 and len(built.summary.skipped) == 8
    assert built.summary.seconds == 65 + 30 + 40 + 10 + 8 + 3 + 5
    assert dict(built.summary.reasons())["no sound"] == 1


def test_no_folder_is_in_both_splits(built):
    splits = defaultdict(set)
    for path, of in records(built).items():
        splits[str(PurePosixPath(path).parent)] |= {record["split"] for record in of}
    assert {frozenset(split) for split in splits.values()} == {
        frozenset({"train"}),
        frozenset({"validation"}),
    }


def test_any_number_of_workers_and_beam_write_the_same_bytes(built, music, tmp_path):
    expected = shard_bytes(built)
    assert len([name for name in expected if ".tfrecord-" in name]) >= 3
    assert shard_bytes(build(tmp_path / "two", music, workers=2)) == expected
    beam = "--direct_num_workers=2 --direct_running_mode=multi_threading"
    assert shard_bytes(build(tmp_path / "beam", music, beam=beam)) == expected


def test_other_rate(music, tmp_path):
    found = records(build(tmp_path, music / "artist", config="24khz"))
    assert {
        path: [len(record["audio"]) / 24_000 for record in of] for path, of in found.items()
    } == {
        "album 1/long.wav": [30, 30, 5],
        "album 1/thirty one.flac": [30],
        "album 2/gap.wav": [30, 10],
    }


def test_one_file_has_no_validation(music, tmp_path):
    builder = build(tmp_path, music / "artist/album 2")
    assert list(builder.info.splits) == ["train"]
    assert builder.info.splits["train"].num_examples == 2


def test_nothing_usable_and_nothing_there(music, tmp_path):
    with pytest.raises(
        BuildError, match=r"8 of 8 audio files are unusable \(.*1 truncated"
    ) as error:
        build(tmp_path, music / "broken")
    listed = tmp_path / "music_folder/16khz/1.0.0.skipped.tsv"
    assert str(listed) in str(error.value) and len(listed.read_text().splitlines()) == 8
    assert list(listed.parent.iterdir()) == [listed]
    with pytest.raises(BuildError, match=r"holds no audio file \(known kinds: \.aac"):
        build(tmp_path, Path(__file__).parent)
    with pytest.raises(BuildError, match="needs --manual_dir=DIR"):
        build(tmp_path, tmp_path / "nowhere")


def test_walk_counts_each_file_once(music):
    found = tree.walk(music)
    assert len(found.files) == 15 and list(found.files) == sorted(found.files)
    assert (found.others, found.repeated) == (2, 3)  # two folders by links, a file by another name
    assert "artist/album 1/long.wav" in found.files  # not by the link, which comes before it


def test_folders_linked_to_one_another_are_walked_once(tmp_path, monkeypatch):
    """Twelve artists, each with a link to every other: the paths among them are 12! many."""
    read, scandir = [], os.scandir

    def count(folder: str) -> object:
        read.append(folder)
        assert len(read) <= 50, "a folder is read again"  # before it takes hours
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", count)
    outside = tmp_path / "outside"
    write(outside / "far/f.wav", noise(3.0))
    for artist in range(12):
        write(tmp_path / f"music/{artist:02d}/s.wav", noise(3.0))
        (tmp_path / f"music/{artist:02d}/far").symlink_to(outside)
        for other in range(12):
            (tmp_path / f"music/{artist:02d}/like {other:02d}").symlink_to(f"../{other:02d}")
    (outside / "back").symlink_to(tmp_path / "music")
    found = tree.walk(tmp_path / "music")
    songs = [f"{artist:02d}/s.wav" for artist in range(12)]
    assert found.files == ("00/far/far/f.wav", *songs)
    assert found.repeated == 12 * 12 + 11 + 1


def test_folders_of_the_system_are_left_alone(tmp_path):
    for folder in ("a", "lost+found", "$RECYCLE.BIN/S-1", "System Volume Information", "b/@eaDir"):
        write(tmp_path / folder / "s.wav", noise(3.0))
    found = tree.walk(tmp_path)
    assert (found.files, found.system) == (("a/s.wav",), 4)


def test_unreadable_folder_is_named(music, tmp_path, monkeypatch, capsys):
    """The rest is built; only if the whole folder cannot be read there is nothing to do."""
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if os.path.basename(folder) == unreadable:
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    unreadable = "artist"
    inputs = Builder(data_dir=tmp_path)._split_generators(SimpleNamespace(manual_dir=music))
    assert len([source for split in inputs.values() for source in split]) == 12
    unreadable = "album 2"
    inputs = Builder(data_dir=tmp_path)._split_generators(SimpleNamespace(manual_dir=music))
    assert len([source for split in inputs.values() for source in split]) == 14
    assert "artist/album 2: Permission denied; ignored" in capsys.readouterr().err
    unreadable = music.name
    with pytest.raises(BuildError, match=f"{music.name}: Permission denied; make it readable"):
        Builder(data_dir=tmp_path)._split_generators(SimpleNamespace(manual_dir=music))


tf.test.TestCase.test_session.__test__ = False  # a helper whose name looks like a test's


class TestBuilder(tfds.testing.DatasetBuilderTestCase):
    """TFDS's own checks of a builder, in both configs."""

    DATASET_CLASS = Builder
    SPLITS = {"train": 3, "validation": 1}  # noqa: RUF012, TFDS's convention

    @classmethod
    def setUpClass(cls) -> None:
        cls.EXAMPLE_DIR = tempfile.mkdtemp()
        write(Path(cls.EXAMPLE_DIR) / "a/long.wav", noise(62.0))
        write(Path(cls.EXAMPLE_DIR) / "b/short.flac", noise(4.0))
        super().setUpClass()
