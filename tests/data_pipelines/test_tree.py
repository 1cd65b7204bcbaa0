"""Folders of music: what is in them, and what is kept for validation."""

import pytest

from data_pipelines.music_folder import tree


def library(artists: int, albums: int, tracks: int = 3) -> dict[str, float]:
    return {
        f"artist {a}/album {b}/{c}.mp3": 100.0
        for a in range(artists)
        for b in range(albums)
        for c in range(tracks)
    }


def folders(paths: set[str] | dict[str, float], depth: int) -> set[str]:
    return {"/".join(path.split("/")[:depth]) for path in paths}


def test_validation_is_of_whole_artists_and_small():
    seconds = library(2000, 3)
    chosen = tree.validation_files(seconds)
    others = set(seconds) - chosen
    assert not folders(chosen, 1) & folders(others, 1)
    assert 0.008 < len(chosen) / len(seconds) < 0.022
    more = seconds | {f"new {a}/album/{b}.mp3": 100.0 for a in range(50) for b in range(3)}
    assert tree.validation_files(more) & set(seconds) == chosen  # a file never changes sides


@pytest.mark.parametrize("artists, albums", [(1, 1), (1, 2), (2, 1), (3, 3), (8, 4), (25, 2)])
def test_validation_of_small_libraries(artists, albums):
    seconds = library(artists, albums)
    chosen = tree.validation_files(seconds)
    others = set(seconds) - chosen
    assert chosen and others
    depth = 3 if artists * albums == 1 else 1 if artists >= 20 else 2
    assert len(folders(chosen, depth)) == 1
    assert not folders(chosen, depth) & folders(others, depth)


@pytest.mark.parametrize("disc", ["CD{}", "cd {}", "Disc_{}", "disk-{}", "Vol. {}"])
def test_the_discs_of_an_album_stay_together(disc):
    seconds = {
        f"artist {a}/album {b}/{disc.format(c)}/{d}.mp3": 100.0
        for a in range(2)
        for b in range(3)
        for c in (1, 2)
        for d in range(4)
    }
    chosen = tree.validation_files(seconds)
    assert len(chosen) == 8 and len(folders(chosen, 2)) == 1


def test_validation_spares_large_folders():
    seconds = library(30, 1) | {f"huge/album/{c}.mp3": 100.0 for c in range(1000)}
    for salt in range(20):  # other names, other hashes
        renamed = {f"{salt} {path}": length for path, length in seconds.items()}
        assert 1 <= len(tree.validation_files(renamed)) <= 9
    assert tree.validation_files({"a/1.mp3": 50.0, "b/1.mp3": 30.0, "b/2.mp3": 30.0}) == {"a/1.mp3"}
    assert tree.validation_files({"a/1.mp3": 50.0}) == set()
