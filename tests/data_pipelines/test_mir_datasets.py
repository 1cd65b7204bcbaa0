"""The labelled data sets, built from fabricated miniatures in their published layouts."""

import contextlib
import csv
import functools
import http.server
import importlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.preprocessing import StandardScaler

from data_pipelines import labelled, sources
from data_pipelines.gtzan.gtzan_dataset_builder import BEATS
from data_pipelines.shards import BuildError
from tests.support import mir_fixtures

NAMES = [
    "emomusic",
    "giantsteps_key",
    "gtzan",
    "magnatagatune",
    "mtg_jamendo",
    "nsynth",
    "vocalset",
]
Record = dict[str, Any]


def module(name: str) -> Any:
    return importlib.import_module(f"data_pipelines.{name}.{name}_dataset_builder")


def prepare(name: str, data_dir: Path, manual_dir: Path | None, config: str | None = None) -> Any:
    builder = module(name).Builder(data_dir=str(data_dir), config=config)
    download = tfds.download.DownloadConfig(manual_dir=manual_dir)
    downloads = data_dir / "downloads"
    builder.download_and_prepare(download_dir=downloads, download_config=download)
    return builder


@functools.lru_cache(maxsize=16)
def records(builder: Any) -> dict[str, dict[str, Record]]:
    """Reads a data set back from its directory alone: {split: {id: record}}."""
    stored = tfds.builder_from_directory(builder.data_dir)
    return {
        split: {record["id"].decode(): record for record in tfds.as_numpy(stored.as_dataset(split))}
        for split in stored.info.splits
    }


def shards(builder: Any) -> dict[str, bytes]:
    """The bytes of each shard: the same for the same records, which are ordered by a hash."""
    return {path.name: path.read_bytes() for path in Path(builder.data_dir).glob("*.tfrecord*")}


@functools.cache
def miniature(name: str) -> tuple[Path, dict[str, int]]:
    """A miniature's folder and the sizes of its splits."""
    root = Path(tfds.testing.make_tmp_dir()) / name
    root.mkdir()
    return root, getattr(mir_fixtures, name)(root)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    @functools.cache
    def make(name: str) -> Any:
        return prepare(name, tmp_path_factory.mktemp(f"{name}_data"), miniature(name)[0])

    return make


def skipped(builder: Any) -> dict[str, str]:
    lines = (Path(builder.data_dir) / "skipped.tsv").read_text().splitlines()
    return dict(line.split("\t") for line in lines)


tf.test.TestCase.test_session.__test__ = False  # a helper whose name looks like a test's

# TFDS's own checks of a builder: every config, counts, overlaps, types, reloading.


def _test_case(name: str) -> type:
    class Case(tfds.testing.DatasetBuilderTestCase):
        DATASET_CLASS = module(name).Builder
        BUILDER_CONFIG_NAMES_TO_TEST = ("24khz",)  # the tests below are on 16khz
        # vocalset's two tasks share recordings, on purpose.
        OVERLAPPING_SPLITS = mir_fixtures.VOCALSET_SPLITS if name == "vocalset" else ()

        @classmethod
        def setUpClass(cls) -> None:
            root, cls.SPLITS = miniature(name)
            cls.EXAMPLE_DIR = str(root)
            super().setUpClass()

        @contextlib.contextmanager
        def _test_key_not_local_path(self, builder: Any) -> Iterator[None]:
            # TFDS's own wraps the generator in a closure over this object, which Beam cannot send
            # to a worker. Here a record's key is its id; and nothing of it is a local path.
            yield
            found = shards(builder).values()
            assert found and not any(self.EXAMPLE_DIR.encode() in shard for shard in found)

    Case.__name__ = Case.__qualname__ = f"{name.title().replace('_', '')}Test"
    return Case


EmoMusicTest = _test_case("emomusic")
GiantStepsKeyTest = _test_case("giantsteps_key")
GtzanTest = _test_case("gtzan")
MagnaTagATuneTest = _test_case("magnatagatune")
MtgJamendoTest = _test_case("mtg_jamendo")
NsynthTest = _test_case("nsynth")
VocalSetTest = _test_case("vocalset")


# Every record, label and count, from the folders of the miniatures.


@pytest.mark.parametrize("name", NAMES)
def test_records_have_the_common_form(name: str, built: Callable) -> None:
    """One whole file each: int16 at the config's rate, id, path, start 0, readable by directory."""
    root, sizes = miniature(name)
    found = records(built(name))
    assert {split: len(members) for split, members in found.items()} == sizes

    def plain(path: str) -> tuple[str, str]:  # 41/241.low.mp3 is 41/241.mp3, 0010089 is 10089
        folder, name = Path(path).parts[-2:] if "/" in path else ("", path)
        return folder, name.replace(".low", "").lstrip("0")

    files = {plain(str(file)): file for file in root.rglob("*.*")}
    flat = {file.name: file for file in root.rglob("*.mp3")}  # emomusic's paths have no folder
    for record in (record for members in found.values() for record in members.values()):
        path = record["path"].decode()
        file = files[plain(path)] if "/" in path else flat[path]
        rate, length = soundfile.info(file).samplerate, soundfile.info(file).frames
        assert record["start"] == 0
        assert record["audio"].dtype == np.int16
        assert abs(len(record["audio"]) - length * 16_000 / rate) <= 2
        assert 2000 < np.abs(record["audio"]).max() < 32768


@pytest.mark.parametrize("name", NAMES)
def test_built_and_published_sizes_are_told_apart(
    name: str, built: Callable, capsys: pytest.CaptureFixture
) -> None:
    """A miniature has other sizes than the data set: metadata hold both, the build says so."""
    stored = tfds.builder_from_directory(built(name).data_dir).info.metadata["sizes"]
    if name == "mtg_jamendo":
        # 6 tracks a split, of which train and validation lose one each; every third has no mood
        built_sizes = {"train": 5, "validation": 5, "test": 6}
        expected = {
            f"{subset}/{split}": size - (subset == "moodtheme")
            for subset in ("instrument", "moodtheme", "genre", "top50")
            for split, size in built_sizes.items()
        }
    else:
        expected = miniature(name)[1]
    assert {entry: size["built"] for entry, size in stored.items()} == expected
    lines = labelled.differences(stored)
    assert len(lines) == (0 if name == "vocalset" else len(stored))
    assert labelled.differences({"train": {"built": 7, "published": 7}}) == []


def test_magnatagatune_labels_and_the_empty_file(built: Callable) -> None:
    builder, (root, _) = built("magnatagatune"), miniature("magnatagatune")
    with (root / "annotations_final.csv").open(newline="") as file:
        rows = {row["clip_id"]: row for row in csv.DictReader(file, delimiter="\t")}
    tags = builder.info.metadata["classes"]["tags"]
    assert len(tags) == 50 and tags[0] == "guitar" and tags[49] == "choral"
    found = records(builder)
    for split, members in found.items():
        for name, record in members.items():
            expected = [int(rows[name][tag]) for tag in tags]
            np.testing.assert_array_equal(record["tags"], expected)
            folder = rows[name]["mp3_path"][0]
            assert split == {"c": "validation", **dict.fromkeys("def", "test")}.get(folder, "train")
    tagless = [r for members in found.values() for r in members.values() if not r["tags"].any()]
    assert len(tagless) == 3  # kept
    assert list(skipped(builder).items()) == [
        ("6/norine_braun-now_and_zen-08-gently-117-146.mp3", "empty: a file of 0 bytes")
    ]


def test_giantsteps_keys_splits_and_faults(built: Callable) -> None:
    builder = built("giantsteps_key")
    names = builder.info.features["key"].names
    keys = {
        split: {name: names[record["key"]] for name, record in members.items()}
        for split, members in records(builder).items()
    }
    assert keys == {
        "train": {"0005881": "A major", "0005999": "Db major"},
        "validation": {
            "0005061": "Eb minor",
            "0007217": "F minor",
            "0010359": "B major",
            "0299310": "C minor",
        },
        "test": {"0010089": "C minor", "0061415": "Eb major", "1234749": "Gb major"},
    }
    assert [reason.split(":")[0] for reason in skipped(builder).values()] == ["corrupt", "missing"]
    assert names[:12] == [f"{t} major" for t in "C Db D Eb E F Gb G Ab A Bb B".split()]  # noqa: SIM905
    assert names[12] == "C minor"


def test_gtzan_beats_are_those_of_the_files(built: Callable) -> None:
    builder, (root, _) = built("gtzan"), miniature("gtzan")
    genres = builder.info.features["genre"].names
    for members in records(builder).values():
        for name, record in members.items():
            file = root / "beats" / f"gtzan_{name.replace('.', '_')}.beats"
            rows = np.genfromtxt(file, ndmin=2)
            times = rows.reshape(-1, 1)[:, 0] if name.startswith("jazz") else rows[:, 0]
            np.testing.assert_allclose(record["beat_times"], times, rtol=1e-6)
            positions = np.zeros(len(times)) if name.startswith("jazz") else rows[:, 1]
            np.testing.assert_array_equal(record["bar_positions"], positions)
            assert record["beat_times"][-1] > len(record["audio"]) / 16_000  # kept as annotated
            assert genres[record["genre"]] == name.split(".")[0]
    assert list(skipped(builder)) == ["jazz/jazz.00054.wav"]


def test_emomusic_is_standardised_with_development_songs(built: Callable) -> None:
    found, (root, _) = records(built("emomusic")), miniature("emomusic")
    with (root / "annotations/static_annotations.csv").open() as file:
        rows = list(csv.DictReader(file))
    raw = {f"{int(r['song_id']):04d}": (r["mean_arousal"], r["mean_valence"]) for r in rows}
    development = [*found["train"], *found["validation"]]
    scaler = StandardScaler().fit([[float(v) for v in raw[name]] for name in development])
    for members in found.values():
        for name, record in members.items():
            values = np.array([raw[name]], float)
            np.testing.assert_allclose(record["emotion_raw"], values[0], rtol=1e-6)
            np.testing.assert_allclose(record["emotion"], scaler.transform(values)[0], rtol=1e-5)


def test_vocalset_labels_renames_and_faults(built: Callable) -> None:
    builder = built("vocalset")
    features, found = builder.info.features, records(builder)
    lists = mir_fixtures.marble_lists(mir_fixtures.VOCALSET.values())
    damaged = mir_fixtures.VOCALSET[mir_fixtures.VOCALSET_DAMAGED]
    assert {split: set(members) for split, members in found.items()} == {
        split: names - {damaged} for split, names in lists.items()
    }
    for name, record in (item for members in found.values() for item in members.items()):
        technique, file = name.split("/")
        assert features["technique"].int2str(record["technique"]) == technique
        assert features["singer"].int2str(record["singer"]) == file.split("_")[0]
        assert mir_fixtures.VOCALSET[record["path"].decode()] == name
    reasons = skipped(builder)
    for path, reason in mir_fixtures.VOCALSET_UNUSED.items():
        assert (path in reasons) == (reason is not None)
        assert reason is None or reasons[path].startswith(reason)


def test_mtg_jamendo_tags_and_membership(built: Callable) -> None:
    builder, (root, _) = built("mtg_jamendo"), miniature("mtg_jamendo")
    classes, found = builder.info.metadata["classes"], records(builder)
    assert {name: len(tags) for name, tags in classes.items()} == {
        "instrument": 3, "moodtheme": 4, "genre": 5, "top50": 6,
    }  # fmt: skip
    seen = 0
    for split, members in found.items():
        for subset, published in (("moodtheme", "moodtheme"), ("top50", "top50tags")):
            table = (root / f"autotagging_{published}-{split}.tsv").read_bytes()
            assert b"\r\n" in table
            rows = {row[0]: row[5:] for row in map(bytes.split, table.splitlines())}
            for name, record in members.items():
                tags = [tag for tag, on in zip(classes[subset], record[subset], strict=True) if on]
                assert [tag.encode() for tag in tags] == sorted(rows.get(name.encode(), []))
                seen += not tags
    assert seen == 3  # the third track of each split has no mood
    assert {path: why.split(":")[0] for path, why in skipped(builder).items()} == {
        "41/241.mp3": "missing",
        "42/242.mp3": "not audio, or a kind that cannot be read",
    }


def test_nsynth_families_and_pitches(built: Callable) -> None:
    builder = built("nsynth")
    for members in records(builder).values():
        for name, record in members.items():
            family = builder.info.features["family"].int2str(record["family"])
            assert name.startswith(f"{family}_")
            assert record["pitch"] == int(name.split("-")[1])
            assert len(record["audio"]) == 64_000


# The same data sets from archives and from a server.


def pack(name: str, root: Path, target: Path) -> None:
    """Packs a miniature into the files that its publisher offers, by the last part of their URL."""
    target.mkdir()
    if name == "magnatagatune":
        folders = [path.name for path in root.iterdir() if path.is_dir()]
        mir_fixtures.zip_folder(target / "mp3.zip", root, folders)
        whole = (target / "mp3.zip").read_bytes()
        (target / "mp3.zip").unlink()
        for i, start in enumerate(range(0, len(whole), -(-len(whole) // 3))):
            part = whole[start : start + -(-len(whole) // 3)]
            (target / f"mp3.zip.{i + 1:03d}").write_bytes(part)
        shutil.copy(root / "annotations_final.csv", target)
    elif name == "giantsteps_key":
        for origin, source in module(name).REPOSITORIES.items():
            repository = source.filename.removesuffix(".zip")
            archive = target / source.url.split("/")[-1]
            parts = [f"{repository}/{part}" for part in ("annotations", "md5")]
            mir_fixtures.zip_folder(archive, root, parts, rename=(repository, f"{repository}-0"))
            for file in (root / repository / "audio").iterdir():
                unpadded = file.name.lstrip("0") if origin == "test" else file.name
                shutil.copy(file, target / unpadded)
        shutil.copy(target / "5999.LOFI.mp3", target / "299311.LOFI.mp3")  # not the published MD5
    elif name == "gtzan":
        mir_fixtures.tar_folder(target / "genres.tar.gz", root, ["genres"])
        mir_fixtures.zip_folder(
            target / BEATS.url.split("/")[-1], root, ["beats"], rename=("beats", "x-0/beats")
        )
        for file in root.glob("*.txt"):
            shutil.copy(file, target)
    elif name == "emomusic":
        mir_fixtures.tar_folder(target / "clips_45sec.tar.gz", root, ["clips_45seconds"])
        tables = ["songs_info.csv", "static_annotations.csv"]
        mir_fixtures.tar_folder(target / "annotations.tar.gz", root / "annotations", tables)
    elif name == "vocalset":
        mir_fixtures.zip_folder(target / "VocalSet11.zip", root, ["FULL", "data_by_vowel"])
    elif name == "nsynth":
        for split in ("train", "valid", "test"):
            archive = target / f"nsynth-{split}.jsonwav.tar.gz"
            mir_fixtures.tar_folder(archive, root, [f"nsynth-{split}"])
    else:
        mir_fixtures.jamendo_tars(target, root)
        for file in root.glob("*.tsv"):
            shutil.copy(file, target)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serves a folder in place of all hosts: a URL's last part is the file's name."""
    folder = tmp_path / "server"
    handler = functools.partial(_Quiet, directory=str(folder))
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    real = tfds.download.DownloadManager.download

    def download(self: Any, urls: dict[str, str]) -> dict:
        def local(url: str) -> str:
            return f"http://127.0.0.1:{httpd.server_port}/{url.split('/')[-1].split('?')[0]}"

        return real(self, {name: local(url) for name, url in urls.items()})

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    yield folder
    httpd.shutdown()
    httpd.server_close()


# How the published digests of downloads begin, where there are any.
DIGESTS = {
    "emomusic": ("sha256:e0cb0b06", "sha256:3994a5d5"),
    "gtzan": ("sha256:2b04966c", "sha256:f8fbee7c", "sha256:09cafa6a", "git-tree:76c2d35e"),
    "magnatagatune": ("sha256:99b94e95", "sha256:f857fe18", "sha256:fc2e1ec4", "sha256:83a68982"),
    "vocalset": ("md5:0c093962",),
}


@pytest.mark.parametrize("name", NAMES)
def test_downloads_give_the_same_records(
    name: str,
    built: Callable,
    server: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Published archives, fetched by TFDS from a server, unpacked or read as they are.

    They are no published ones, so that their digests are asked for, but not looked at.
    """
    pack(name, miniature(name)[0], server)
    asked = []
    if name != "mtg_jamendo":  # whose list of digests is served too, and checked
        monkeypatch.setattr(sources, "mismatch", lambda path, digest: asked.append(digest))
    assert shards(prepare(name, tmp_path / "data", None)) == shards(built(name))
    wanted = sorted(DIGESTS.get(name, ()))
    assert sorted({x[: x.index(":") + 9] for x in filter(None, asked)}) == wanted


@pytest.mark.parametrize(
    ("name", "number"), [(name, i) for name, all_ in DIGESTS.items() for i in range(len(all_))]
)
def test_a_download_of_another_digest_is_refused(
    name: str, number: int, server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file in turn is not what was published: it is named, and nothing is built."""
    pack(name, miniature(name)[0], server)
    real, published = sources.mismatch, DIGESTS[name][number]

    def of_this(path: Any, digest: str | None) -> str | None:
        return real(path, digest) if digest and digest.startswith(published) else None

    monkeypatch.setattr(sources, "mismatch", of_this)
    algorithm, _, start = published.partition(":")
    told = rf"^https?://\S+: .*{algorithm} is [0-9a-f]+, but the published one is {start}.*$"
    with pytest.raises(BuildError, match=told):
        prepare(name, tmp_path / "data", None)
    assert not list((tmp_path / "data").rglob("*.tfrecord*"))


@pytest.mark.parametrize("name", ["emomusic", "gtzan", "magnatagatune", "nsynth", "vocalset"])
def test_archives_by_hand_give_the_same_records(
    name: str,
    built: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The published archives in --manual_dir, and nothing is downloaded."""
    pack(name, miniature(name)[0], tmp_path / "manual")
    if name == "gtzan":
        manual = tmp_path / "manual"
        (manual / BEATS.url.split("/")[-1]).rename(manual / "gtzan_tempo_beat-main.zip")
    monkeypatch.delattr(tfds.download.DownloadManager, "download")
    assert shards(prepare(name, tmp_path / "data", tmp_path / "manual")) == shards(built(name))
