"""The labelled data sets: published split rules, tables, digests, and inputs that are wrong."""

import hashlib
import importlib
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import batches, labelled, sources
from data_pipelines.emomusic import emomusic_dataset_builder as emomusic
from data_pipelines.giantsteps_key import giantsteps_key_dataset_builder as giantsteps_key
from data_pipelines.gtzan import gtzan_dataset_builder as gtzan
from data_pipelines.magnatagatune import magnatagatune_dataset_builder as magnatagatune
from data_pipelines.mtg_jamendo import mtg_jamendo_dataset_builder as mtg_jamendo
from data_pipelines.nsynth import nsynth_dataset_builder as nsynth
from data_pipelines.shards import BuildError
from data_pipelines.vocalset import vocalset_dataset_builder as vocalset
from tests.support import commands, mir_fixtures


def sha1(text: str) -> int:
    return int.from_bytes(hashlib.sha1(text.encode()).digest())


def test_magnatagatune_splits_by_the_folder() -> None:
    splits = [magnatagatune.split_of(f"{digit:x}/a-b-01-c-0-29.mp3") for digit in range(16)]
    assert splits == ["train"] * 12 + ["validation"] + ["test"] * 3
    with pytest.raises(BuildError, match="hexadecimal"):
        magnatagatune.split_of("g/a.mp3")


def test_giantsteps_artists_stay_together() -> None:
    """Against the rule as a repeated sweep over sets of names."""
    draw = random.Random(3)
    names = [f"Artist {i}" for i in range(300)]
    credits = [", ".join(draw.sample(names, draw.choice([1, 1, 1, 2, 3]))) for _ in range(900)]
    validation = {name for name in names if sha1(name.lower()) % 116 >= 100}
    direct = len(validation)
    for _ in range(2):
        for credit in credits:
            team = set(credit.split(", "))
            validation |= team if team & validation else set()
    found = giantsteps_key.artist_splits(credits)
    credited = {name for credit in credits for name in credit.split(", ")}
    assert {name for name in found if found[name] == "validation"} == validation & credited
    assert 30 < direct < 60 < len(validation)  # 16 of 116, and their collaborators


@pytest.mark.parametrize(
    ("text", "key"),
    [("C minor", "C minor"), ("F# major ", "Gb major"), ("Bb\tminor\n", "Bb minor")],
)
def test_keys_are_spelled_with_flats(text: str, key: str) -> None:
    assert giantsteps_key.parse_key(text) == key


@pytest.mark.parametrize("text", ["", "-", "H minor", "C", "C minor / F# minor", "A-A# minor"])
def test_what_is_no_key_is_named(text: str) -> None:
    with pytest.raises(BuildError, match=re.escape(repr(text))):
        giantsteps_key.parse_key(text)


def test_emomusic_splits_by_a_hash_of_the_artist() -> None:
    for artist in ["Broke For Free", "  The  Kyoto Connection", "Ärtist №5!", "AC/DC"]:
        plain = " ".join(re.sub(r"[^a-z\s]", "", artist.lower()).split())
        expected = "train" if sha1(plain) % 10 in range(8) else "validation"
        assert emomusic.split_of(artist, "development") == expected
        assert emomusic.split_of(artist, "evaluation") == "test"


def test_vocalset_splits_are_those_of_group_shuffle_split() -> None:
    """Against scikit-learn's GroupShuffleSplit on a listing of VocalSet's size."""
    draw = random.Random(5)
    paths = {}
    for i in range(3500):
        folder, singer = draw.choice(
            [
                *((f"female{j}", f"f{j}") for j in range(1, 10)),
                *((f"male{j}", f"m{j}") for j in range(1, 12)),
            ]
        )
        technique = draw.choice([*vocalset.TECHNIQUES, "forte", "forte", "pp", "messa"])
        paths[f"{folder}/scales/{technique}/{singer}_take_{i}.wav"] = (
            f"{technique}/{singer}_take_{i}"
        )
    recordings, faults = vocalset.read_tree(list(paths))
    twin = "female2/scales/straight/f2_scales_straight_u"
    both, _ = vocalset.read_tree([f"{twin}.wav", f"{twin}(1).wav"])
    assert [recording.name for recording in both] == [
        "f2_scales_straight_u(1)",
        "f2_scales_straight_u",
    ]
    assert {recording.key for recording in recordings} == set(paths.values())
    assert faults == {}
    found = vocalset.split_tables(recordings)
    expected = mir_fixtures.marble_lists(paths.values())
    assert {split: {r.key for r in members} for split, members in found.items()} == expected
    train, validation = (
        {r.singer for r in found[f"technique_{s}"]} for s in ("train", "validation")
    )
    assert train == validation  # as published: the recordings differ, the singers do not


def test_gtzan_tables() -> None:
    assert gtzan.read_list("jazz/jazz.00054.wav\r\n\nrock/rock.00000.wav\n") == [
        ("jazz", "jazz/jazz.00054.wav"),
        ("rock", "rock/rock.00000.wav"),
    ]
    with pytest.raises(BuildError, match=r"blues\.00001"):
        gtzan.read_list("rock/blues.00001.wav")
    times, positions = gtzan.read_beats("1.5\t2\n0.25\t1\n30.52\t3\n")
    np.testing.assert_array_equal(times, np.float32([0.25, 1.5, 30.52]))
    np.testing.assert_array_equal(positions, [1, 2, 3])
    assert [len(part) for part in gtzan.read_beats("")] == [0, 0]


def test_jamendo_tables_with_either_line_end() -> None:
    header = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"
    rows = [
        "track_0000241\ta\tb\t41/241.mp3\t340.1\tgenre---rock",
        "track_0000242\ta\tb\t42/242.mp3\t31.5\tgenre---pop\tgenre---rock\tmood/theme---happy",
    ]
    for end in ("\r\n", "\n"):
        table = mtg_jamendo.read_table(end.join([header, *rows]) + end)
        assert table["track_0000241"] == ("41/241.mp3", 340.1, ("genre---rock",))
        assert table["track_0000242"].tags == ("genre---pop", "genre---rock", "mood/theme---happy")
    with pytest.raises(BuildError, match="its first line is '<html>'"):
        mtg_jamendo.read_table("<html>")


def test_published_sizes_add_up() -> None:
    """The totals that the data sets' own publications state."""
    total = {
        m.__name__.split(".")[1]: sum(m.Builder.EXPECTED_SIZES.values())
        for m in (magnatagatune, giantsteps_key, gtzan, emomusic, nsynth)
    }
    assert total == {
        "magnatagatune": 25_863 - 3,  # annotated clips, zero-byte files
        "giantsteps_key": 1_159 + 604,
        "gtzan": 1_000 - 70,
        "emomusic": 744,
        "nsynth": 305_979,
    }
    jamendo = mtg_jamendo.Builder.EXPECTED_SIZES
    sums = {s: sum(n for k, n in jamendo.items() if k.startswith(s)) for s in mtg_jamendo.SUBSETS}
    assert sums == {"instrument": 24_976, "moodtheme": 17_982, "genre": 55_094, "top50": 54_380}


def _edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        text = (root / name).read_bytes().decode()
        assert old in text
        (root / name).write_bytes(text.replace(old, new).encode())

    return edit


def _spoil(pattern: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        for file in root.glob(pattern):
            file.write_bytes(b"spoilt")

    return spoil


_MTG = "giantsteps-mtg-key-dataset/annotations"
WRONG = {
    "a column is missing": (
        "magnatagatune", _edit("annotations_final.csv", '"choral"', '"chorus"'), "column 'choral'"
    ),
    "a folder of another layout": (
        "magnatagatune", _edit("annotations_final.csv", '"c/', '"z/'), "hexadecimal"
    ),
    "an empty list": ("gtzan", lambda root: (root / "test_filtered.txt").write_text(""), "test"),
    "a clip is listed twice": (
        "gtzan", _edit("valid_filtered.txt", "blues.00030", "blues.00030.wav\nblues/blues.00030"),
        "blues.00030 occurs twice",
    ),
    "beats of other clips": (
        "gtzan",
        lambda root: (root / "beats").rename(root / "x") and (root / "beats").mkdir(),
        "no file gtzan_<genre>_<NNNNN>.beats",
    ),
    "no beats at all": ("gtzan", lambda root: shutil.rmtree(root / "beats"), "download failed"),
    "a song without annotation": (
        "emomusic", _edit("annotations/static_annotations.csv", "\n5,", "\n9995,"), "song_id 5"
    ),
    "a malformed beat": (
        "gtzan", _edit("beats/gtzan_pop_00030.beats", "0.717\t2", "0.717,2"),
        r"gtzan_pop_00030\.beats, line 2: '0\.717,2' is not seconds",
    ),
    "a beat that is no number": (
        "gtzan", _edit("beats/gtzan_pop_00030.beats", "0.717", "NaN"), r"pop_00030\.beats, line 2"
    ),
    "a malformed key": (
        "giantsteps_key", _edit(f"{_MTG}/annotations.txt", "A major", "A-A# minor"),
        r"annotations\.txt, track 5881: 'A-A# minor' is not a key",
    ),
    "a malformed key of the test set": (
        "giantsteps_key",
        _edit("giantsteps-key-dataset/annotations/key/0061415.LOFI.key", "Eb major", "Eb maj"),
        r"0061415\.LOFI\.key: 'Eb maj",
    ),
    "a track without metadata": (
        "giantsteps_key", _edit(f"{_MTG}/beatport_metadata.txt", "\n5881\t", "\n5882\t"), "5881"
    ),
    "no usable test track": (
        "giantsteps_key", _spoil("giantsteps-key-dataset/audio/*.mp3"), "test has no usable track"
    ),
    "mixed split files": (
        "mtg_jamendo",
        lambda root: shutil.copy(
            root / "autotagging_genre-test.tsv", root / "autotagging_genre-train.tsv"
        ),
        "mixed split files",
    ),
    "an error page in place of a table": (
        "mtg_jamendo", _spoil("autotagging_genre-test.tsv"), "first line is 'spoilt'"
    ),
    "a stranger's folder": (
        "vocalset", lambda root: (root / "FULL/female1").rename(root / "FULL/child1"), "child1"
    ),
    "an unknown family": (
        "nsynth", _edit("nsynth-test/examples.json", '"organ"', '"kazoo"'), "family 'kazoo'"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            getattr(mir_fixtures, name)(made[name])
        return made[name]

    return make


def prepare(name: str, data_dir: Path, manual_dir: Path, config: str | None = None) -> Any:
    module = importlib.import_module(f"data_pipelines.{name}.{name}_dataset_builder")
    builder = module.Builder(data_dir=str(data_dir), config=config)
    download = tfds.download.DownloadConfig(manual_dir=manual_dir)
    builder.download_and_prepare(download_dir=data_dir, download_config=download)
    return builder


@pytest.mark.parametrize("what", WRONG)
def test_wrong_inputs_are_named(what: str, whole: Callable[[str], Path], tmp_path: Path) -> None:
    name, damage, message = WRONG[what]
    shutil.copytree(whole(name), tmp_path / "manual")
    damage(tmp_path / "manual")
    offline = mock.patch.object(
        tfds.download.DownloadManager, "download", side_effect=ConnectionError("offline")
    )
    with offline, pytest.raises(BuildError, match=message) as raised:
        prepare(name, tmp_path / "data", tmp_path / "manual")
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "data").rglob("*.tfrecord*"))


def test_a_clip_without_beats_is_told(
    whole: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(whole("gtzan"), tmp_path / "manual")
    (tmp_path / "manual/beats/gtzan_rock_00031.beats").unlink()
    older = tmp_path / "manual/genres/pop/pop.00031.wav"
    older.rename(older.with_suffix(".au"))
    builder = prepare("gtzan", tmp_path / "data", tmp_path / "manual")
    assert "clips without beats: 1 (rock.00031)" in capsys.readouterr().err
    assert builder.info.metadata["sizes"]["test"]["built"] == 10
    test = tfds.as_numpy(builder.as_dataset("test"))
    empty = [r["id"] for r in test if not len(r["beat_times"]) and not len(r["bar_positions"])]
    assert empty == [b"rock.00031"]


def test_beats_are_those_of_the_commit(
    whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """By git's own digest of the folder; other beats are used if they were placed by hand."""
    root = whole("gtzan")
    subprocess.run(["git", "init", "-q", tmp_path / "git"], check=True)
    shutil.copytree(root / "beats", tmp_path / "git/beats")
    for command in (["add", "."], ["write-tree", "--prefix=beats/"]):
        done = subprocess.run(
            ["git", "-C", tmp_path / "git", *command], check=True, capture_output=True, text=True
        )
    assert sources.git_tree(epath.Path(root / "beats")) == done.stdout.strip()
    prepare("gtzan", tmp_path / "data", root)
    assert "git-tree is " in capsys.readouterr().err
    monkeypatch.setattr(gtzan, "BEATS_TREE", f"git-tree:{done.stdout.strip()}")
    prepare("gtzan", tmp_path / "again", root)
    assert "git-tree is " not in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["VocalSet1-2/data_by_singer", "data_by_singer", "zip"])
def test_vocalset_1_2(
    whole: Callable[[str], Path],
    tmp_path: Path,
    layout: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Three copies of the recordings, of which one is read; the same records as of version 1.1."""
    monkeypatch.delattr(tfds.download.DownloadManager, "download")  # nothing is missing
    root, manual = whole("vocalset"), tmp_path / "manual"
    top = manual / ("VocalSet1-2" if layout == "zip" else Path(layout).parent)
    shutil.copytree(root / "FULL", top / "data_by_singer")
    for recording in (root / "FULL").glob("*/*/*/*.wav"):
        copy = top / "data_by_technique" / recording.parts[-2] / recording.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(recording, copy)
    (top / "train_singers_technique.txt").touch()
    if layout == "zip":
        mir_fixtures.zip_folder(manual / "VocalSet1-2.zip", manual, [top.name])
        shutil.rmtree(top)
    found = prepare("vocalset", tmp_path / "data", manual)
    expected = prepare("vocalset", tmp_path / "other", root)
    assert ("the published one is c5e5efab" in capsys.readouterr().err) == (layout == "zip")
    shards = [
        {file.name: file.read_bytes() for file in Path(builder.data_dir).glob("*.tfrecord*")}
        for builder in (found, expected)
    ]
    assert shards[0] == shards[1]


def test_jamendo_files_of_both_names_and_in_archives(
    whole: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(whole("mtg_jamendo"), tmp_path / "manual")
    folders = sorted(p for p in (tmp_path / "manual").iterdir() if p.is_dir())
    expected = prepare("mtg_jamendo", tmp_path / "data", tmp_path / "manual")
    for folder in folders[::2]:
        for file in folder.glob("*.low.mp3"):
            file.rename(folder / file.name.replace(".low", ""))
    mixed = prepare("mtg_jamendo", tmp_path / "mixed", tmp_path / "manual")
    mir_fixtures.jamendo_tars(tmp_path / "manual", tmp_path / "manual")
    for number, folder in enumerate(folders):  # each is there once, as a folder or packed
        tar = tmp_path / f"manual/raw_30s_audio-low-{folder.name}.tar"
        shutil.rmtree(folder) if number % 3 == 0 else tar.unlink()
    archives = prepare("mtg_jamendo", tmp_path / "archives", tmp_path / "manual")
    for other in (mixed, archives):
        assert other.info.splits.total_num_examples == expected.info.splits.total_num_examples == 16


@pytest.mark.parametrize("name", ["vocalset", "giantsteps_key", "mtg_jamendo", "gtzan"])
def test_folders_whose_names_look_like_patterns(
    name: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    folders = [tmp_path / folder for folder in ("manual [v1]", "data [v1]*", "data")]
    shutil.copytree(whole(name), folders[0])
    found = prepare(name, folders[1], folders[0])
    plain = prepare(name, folders[2], whole(name))
    assert found.info.splits.total_num_examples == plain.info.splits.total_num_examples > 0
    assert batches.is_built(name, folders[1])


def test_jamendo_archives_by_hand(whole: Callable[[str], Path], tmp_path: Path) -> None:
    """The mood/theme config, in two processes, from .tar files, by the command."""
    manual, root = tmp_path / "manual", whole("mtg_jamendo")
    manual.mkdir()
    mir_fixtures.jamendo_tars(manual, root)
    for table in root.glob("autotagging_moodtheme-*.tsv"):
        shutil.copy(table, manual)
    flags = [f"--manual_dir={manual}", f"--data_dir={tmp_path / 'data'}", "--workers=2"]
    command = ["data_pipelines.build", "mtg_jamendo/moodtheme_16khz", *flags]
    process = commands.Process(commands.module, *command)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "13 (train 4, validation 4, test 5)" in output
    assert "moodtheme/test has 5 items, but the published split has 4,231" in errors
    (version,) = (tmp_path / "data/mtg_jamendo/moodtheme_16khz").glob("[0-9]*")
    stored = tfds.builder_from_directory(version)
    assert set(stored.info.features) == {"id", "path", "start", "audio", "moodtheme"}
    for record in tfds.as_numpy(stored.as_dataset("test")):
        assert record["moodtheme"].any() and record["audio"].any()

    (manual / "raw_30s_audio-low-41.tar").unlink()
    with pytest.raises(BuildError, match=r"no archive \*-41\.tar"):
        prepare("mtg_jamendo", tmp_path / "other", manual, "moodtheme_16khz")


def test_member_of_an_archive_is_read_without_unpacking(tmp_path: Path) -> None:
    mir_fixtures.sound(tmp_path / "07/107.low.mp3", 44_100)
    mir_fixtures.tar_folder(tmp_path / "x-07.tar", tmp_path, ["07"], "w")
    member = labelled.Member(epath.Path(tmp_path / "x-07.tar"), "107")
    with labelled._on_disk(member) as path:
        assert path.suffix == ".mp3"
        assert path.read_bytes() == (tmp_path / "07/107.low.mp3").read_bytes()
    assert not path.exists()
