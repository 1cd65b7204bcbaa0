"""Files of published data sets: found, downloaded, checked, joined."""

import hashlib
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import sources
from data_pipelines.gtzan import gtzan_dataset_builder as gtzan
from data_pipelines.shards import BuildError


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_digests(algorithm: str, tmp_path: Path) -> None:
    file = epath.Path(tmp_path / "file")
    file.write_bytes(b"x" * (3 << 20))
    right = subprocess.run([f"{algorithm}sum", file], capture_output=True, text=True, check=True)
    digest = right.stdout.split()[0]
    assert sources.mismatch(file, f"{algorithm}:{digest}") is None
    assert sources.mismatch(file, None) is None
    assert digest in sources.mismatch(file, f"{algorithm}:{digest[::-1]}")


def fake_manager(manual: Path | None, downloads: dict[str, Path]) -> mock.Mock:
    manager = mock.Mock(
        download=mock.Mock(side_effect=lambda urls: {k: downloads[k] for k in urls})
    )
    value = mock.PropertyMock(return_value=manual, side_effect=None if manual else AssertionError)
    type(manager).manual_dir = value
    return manager


def test_fetch_prefers_the_readers_files_and_checks_downloads(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.csv").write_text(name)
    digest = f"sha256:{hashlib.sha256(b'theirs').hexdigest()}"
    wanted = {"table": sources.DownloadSource("table.csv", "http://host/table.csv", digest)}
    downloads = {"table": tmp_path / "theirs/table.csv"}

    found = sources.fetch(fake_manager(None, downloads), wanted)
    assert found["table"].read_text() == "theirs"
    found = sources.fetch(fake_manager(tmp_path / "mine", {}), wanted)
    assert found["table"].read_text() == "mine"
    assert "it is used anyway" in capsys.readouterr().err
    with pytest.raises(
        BuildError, match=r"http://host/table.csv: its sha256 is .*, but the published one is"
    ):
        sources.fetch(fake_manager(None, {"table": tmp_path / "mine/table.csv"}), wanted)


def test_an_unreachable_host_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    builder = gtzan.Builder(data_dir=str(tmp_path))
    with (
        mock.patch.object(
            tfds.download.DownloadManager, "download", side_effect=ConnectionError("no route")
        ),
        pytest.raises(BuildError, match=r"no route.*README\.md.*--manual_dir"),
    ):
        builder.download_and_prepare(download_dir=tmp_path)


def test_join_makes_the_whole_file_once(tmp_path: Path) -> None:
    parts = [epath.Path(tmp_path / f"mp3.zip.{i:03d}") for i in (1, 2, 3)]
    for part, text in zip(parts, (b"one", b"two", b"three"), strict=True):
        part.write_bytes(text)
    target = epath.Path(tmp_path / "mp3.zip")
    target.write_bytes(b"cut off")
    assert sources.join(parts, target).read_bytes() == b"onetwothree"
    modified = target.stat().mtime
    assert sources.join(parts, target).stat().mtime == modified
