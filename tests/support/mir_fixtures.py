"""Fabricated miniatures of the labelled data sets, in their published layouts, faults included.

Each function fills a folder as a reader's --manual_dir would be and returns the number of usable
items of each split. Sounds are short tones; names, tables and archives are as published.
"""

import hashlib
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from sklearn.model_selection import GroupShuffleSplit

from data_pipelines.magnatagatune.magnatagatune_dataset_builder import TAGS

SECONDS = 1.2
GENRES = "blues classical country disco hiphop jazz metal pop reggae rock".split()  # noqa: SIM905
SUBSETS = {"instrument": 3, "moodtheme": 4, "genre": 5, "top50tags": 6}  # tags in the miniature


def sound(path: Path, rate: int, seconds: float = SECONDS, hertz: float | None = None) -> None:
    """Writes a tone with a little noise, its pitch from the file's name unless given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32(path.name.encode())
    n = np.arange(int(seconds * rate))
    tone = 0.4 * np.sin(2 * np.pi * (hertz or 110 + seed % 880) * n / rate)
    noise = 0.02 * np.random.default_rng(seed).standard_normal(len(n))
    soundfile.write(path, tone + noise, rate)


def magnatagatune(root: Path, each: int = 3) -> dict[str, int]:
    """16 kHz mp3 in folders 0 ... f, a table of 188 quoted tag columns, one zero-byte file."""
    others = [f"rare {i}" for i in range(188 - len(TAGS))]
    names = sorted([*TAGS, *others])
    rows, sizes = [], {"train": 0, "validation": 0, "test": 0}
    folders = {"train": "0a5b9", "validation": "c", "test": "def"}
    for split, letters in folders.items():
        for i in range(each):
            path = (
                f"{letters[i % len(letters)]}/artist-album-{i:02d}-title-{29 * i}-{29 * i + 29}.mp3"
            )
            sound(root / path, 16_000)
            tags = {TAGS[i % 50], TAGS[(7 * i + 1) % 50]} if i != 1 else {"rare 3"}
            rows.append((path, tags))
            sizes[split] += 1
    empty = "6/norine_braun-now_and_zen-08-gently-117-146.mp3"
    (root / "6").mkdir(parents=True)
    (root / empty).touch()
    rows.append((empty, {"guitar"}))
    table = [["clip_id", *names, "mp3_path"]]
    table += [
        [str(2 * i), *(str(int(name in tags)) for name in names), path]
        for i, (path, tags) in enumerate(rows)
    ]
    lines = ("\t".join(f'"{cell}"' for cell in row) + "\n" for row in table)
    (root / "annotations_final.csv").write_text("".join(lines))
    return sizes


def giantsteps_key(root: Path) -> dict[str, int]:
    """Two repositories, one with padded ids; low confidence, two keys, a bad MD5, a lost file."""
    mtg, test = root / "giantsteps-mtg-key-dataset", root / "giantsteps-key-dataset"
    artists = {  # sha1 mod 116 of Anna is 112, so she is a validation artist; the others are not
        5061: ("Dora, Emil", "D# minor", "2"),  # validation in the second pass, by Dora
        5881: ("Bela, Cleo", "A major", "2"),
        5999: ("Bela", "C# major", "2"),
        7217: ("Anna", "F minor", "2"),
        10359: ("Anna, Dora", "B major ", "2"),
        10981: ("Anna", "-", "0"),
        16484: ("Emil, Finn", "A minor", "1"),  # not used, but it binds Finn to Emil
        61578: ("Cleo", "C minor / F# minor", "2"),
        299300: ("Cleo", "G minor", "2"),  # another file than was published
        299310: ("Finn", "C minor", "2"),
        299311: ("Bela", "C minor", "2"),  # not in audio/
    }
    for name in ("audio", "md5", "annotations"):
        (mtg / name).mkdir(parents=True)
    keys = [f"{track}\t{key}\t{c}\n" for track, (_, key, c) in artists.items()]
    (mtg / "annotations/annotations.txt").write_text("ID\tMANUAL KEY\tC\n" + "".join(keys))
    header = "ID\tARTIST\tSONG TITLE\tMIX\tLABEL\tBP GENRE\tBP BPM\tBP KEY\n"
    rows = [f"{i}\t{a}\tSong\tMix\tL\tHouse\t125\tA min\n" for i, (a, _, _) in artists.items()]
    (mtg / "annotations/beatport_metadata.txt").write_text(header + "".join(rows))
    for track in artists:
        _with_md5(mtg, str(track))
    (mtg / "md5/299300.LOFI.md5").write_text("0" * 32 + "\n")
    (mtg / "audio/299311.LOFI.mp3").unlink()
    for track, key in ((10089, "C minor"), (61415, "Eb major"), (1234749, "F# major")):
        _with_md5(test, f"{track:07d}")
        (test / "annotations/key").mkdir(parents=True, exist_ok=True)
        (test / f"annotations/key/{track:07d}.LOFI.key").write_text(key + "\n")
    return {"train": 2, "validation": 4, "test": 3}


def _with_md5(repository: Path, name: str) -> None:
    file = repository / f"audio/{name}.LOFI.mp3"
    sound(file, 44_100)
    digest = repository / f"md5/{name}.LOFI.md5"
    digest.parent.mkdir(exist_ok=True)
    digest.write_text(hashlib.md5(file.read_bytes()).hexdigest() + "\n")


def gtzan(root: Path, genres: Sequence[str] = GENRES, corrupt: bool = True) -> dict[str, int]:
    """22,050 Hz wav, three lists, beats; jazz.00054 is damaged, blues.00099 in no list."""
    sizes = {}
    for number, split in enumerate(("train", "valid", "test")):
        listed = [f"{genre}/{genre}.{29 + number:05d}.wav" for genre in genres]
        sizes["validation" if split == "valid" else split] = len(listed)
        if split == "train" and corrupt:
            listed.append("jazz/jazz.00054.wav")
        (root / f"{split}_filtered.txt").write_text("\n".join(listed) + "\n")
        for path in listed:
            sound(root / "genres" / path, 22_050)
            _beats(root / "beats", path)
    if corrupt:
        (root / "genres/jazz/jazz.00054.wav").write_bytes(b"not a wave file at all")
    sound(root / "genres/blues/blues.00099.wav", 22_050)
    return sizes


def _beats(folder: Path, path: str) -> None:
    """Writes a .beats file; the last beat lies behind the audio, and jazz has no positions."""
    folder.mkdir(exist_ok=True)
    times = np.arange(0.217, SECONDS + 0.5, 0.5)
    rows = [f"{time:.3f}\t{i % 4 + 1}" for i, time in enumerate(times)]
    if path.startswith("jazz"):
        rows = [row.split("\t")[0] for row in rows]
    stem = path.split("/")[1].removesuffix(".wav").replace(".", "_")
    (folder / f"gtzan_{stem}.beats").write_text("\n".join(rows) + "\n")


def emomusic(root: Path, songs: int = 12) -> dict[str, int]:
    """44.1 kHz mp3, two tables with stray spaces and quoted commas; every fifth is evaluation."""
    info = [
        "song_id,file_name,Artist,Song title,start of the segment (min.sec),"
        "end of the segment (min.sec),Genre,Mediaeval 2013 set\n"
    ]
    static = ["song_id,mean_arousal,std_arousal,mean_valence,std_valence\n"]
    sizes = {"train": 0, "validation": 0, "test": 0}
    for i in range(songs):
        song, letter = 2 + 3 * i, "abcdefghijklmnopqrst"[i]
        sound(root / f"clips_45seconds/{song}.mp3", 44_100)
        held = "evaluation" if i % 5 == 4 else "development"
        artist = f"The  Ärtist, No. {i} {letter}"
        info.append(f'{song},{song}.mp3\t,"{artist} ", A title ,0.2,0.47,Rock,{held} \n')
        static.append(f"{song},{1 + i / 2},0.5,{9 - i / 3},0.5\n")
        value = int.from_bytes(hashlib.sha1(f"the rtist no {letter}".encode()).digest())
        development = "validation" if value % 10 in (8, 9) else "train"
        sizes["test" if held == "evaluation" else development] += 1
    (root / "annotations").mkdir()
    (root / "annotations/songs_info.csv").write_text("".join(info))
    (root / "annotations/static_annotations.csv").write_text("".join(static))
    return sizes


def vocalset(root: Path) -> dict[str, int]:
    """44.1 kHz wav as FULL/<singer>/<context>/<technique>/<file>, with the documented faults."""
    for path in [*VOCALSET, *VOCALSET_UNUSED]:
        sound(root / "FULL" / path, 44_100)
    (root / "FULL/female1/scales/belt/.DS_Store").write_bytes(b"\0")
    (root / "FULL" / VOCALSET_DAMAGED).write_bytes(b"RIFF")
    (root / "data_by_vowel").mkdir()
    lists = marble_lists(VOCALSET.values())
    return {split: len(names - {VOCALSET[VOCALSET_DAMAGED]}) for split, names in lists.items()}


VOCALSET = {  # path below FULL/ -> <technique>/<final name>
    f"{folder}/scales/{technique}/{singer}_scales_{technique}_{vowel}.wav": (
        f"{technique}/{singer}_scales_{technique}_{vowel}"
    )
    for folder, singer in (
        ("female1", "f1"),
        ("female2", "f2"),
        ("male3", "m3"),
        ("male8", "m8"),
        ("male11", "m11"),
    )
    for technique in ("belt", "straight", "vocal_fry", "forte")
    for vowel in "ae"
} | {
    "male3/scales/lip_trill/scales_lip_trill.wav": "lip_trill/m3_scales_lip_trill",
    "female4/arpeggios/straight/arpeggios_straight_a.wav": "straight/f4_arpeggios_straight_a",
    "male9/excerpts/vibrato/m9_caro_vibrato.wav": "vibrato/m9_caro_vibrato",
}
VOCALSET_SPLITS = [
    f"{task}_{split}"
    for task in ("technique", "singer")
    for split in ("train", "validation", "test")
]
VOCALSET_DAMAGED = "male11/scales/belt/m11_scales_belt_a.wav"
VOCALSET_UNUSED = {
    "female2/scales/vibrato/f2_scales_vibrato_a(1).wav": "superfluous",
    "male10/excerpts/vibrato/caro_vibrato.wav": "superfluous",
    "male8/excerpts/vibrato/m9_caro_vibrato.wav": "misnamed: m9 by its name, m8 by its folder",
    "female2/arpeggios/vibrado/f2_arpeggios_vibrato_a.wav": None,  # not one of the 17 folders
}


def marble_lists(names: Iterable[str]) -> dict[str, set[str]]:
    """Splits <technique>/<name> with scikit-learn, in the order of MARBLE's preprocessing."""
    names = sorted(names, key=lambda name: (name.split("/")[0], f"{name}.wav"))
    techniques = sorted({name.split("/")[0] for name in names})
    listed = {t: [name for name in names if name.startswith(f"{t}/")] for t in techniques}
    ids = {name: i for members in listed.values() for i, name in enumerate(members)}
    state = np.random.RandomState(42617)

    def halves(chosen: list[str], share: float) -> tuple[list[str], list[str]]:
        splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=state)
        kept, taken = next(splitter.split(chosen, groups=[ids[name] for name in chosen]))
        return [chosen[i] for i in kept], [chosen[i] for i in taken]

    ten = [n for n in names if n.split("/")[0] not in ("forte", "pp", "messa")]
    test = [n for n in ten if n.split("/")[1].split("_")[0] in ("f2", "f8", "m3", "m5", "m10")]
    train, validation = halves([n for n in ten if n not in test], 0.4)
    rest, singer_test = halves(names, 0.2)
    singer_train, singer_validation = halves(rest, 0.4)
    lists = {
        "technique_train": train,
        "technique_validation": validation,
        "technique_test": test,
        "singer_train": singer_train,
        "singer_validation": singer_validation,
        "singer_test": singer_test,
    }
    return {split: set(members) for split, members in lists.items()}


def mtg_jamendo(root: Path, each: int = 6) -> dict[str, int]:
    """Tables with CRLF and varying columns, mono mp3; one track is missing, one is damaged."""
    sizes = {}
    for number, split in enumerate(("train", "validation", "test")):
        tracks = [241 + 100 * i + number for i in range(each)]
        for subset, classes in SUBSETS.items():
            _jamendo_table(root, subset, split, tracks, classes)
        for track in tracks:
            sound(root / f"{track % 100:02d}/{track}.low.mp3", 44_100, SECONDS + 0.1 * number)
        sizes[split] = each
    (root / "41/241.low.mp3").unlink()
    (root / "42/242.low.mp3").write_bytes(b"ID3 and nothing else")
    return sizes | {"train": each - 1, "validation": each - 1}


def _jamendo_table(
    root: Path, subset: str, split: str, tracks: Iterable[int], classes: int
) -> None:
    kind = {"moodtheme": "mood/theme", "top50tags": "genre"}.get(subset, subset)
    lines = ["TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"]
    for i, track in enumerate(tracks):
        tags = sorted({f"{kind}---tag{(i + k) % classes}" for k in range(i % 3 + 1)})
        if subset != "moodtheme" or i != 2:  # a track that has no mood
            path = f"{track % 100:02d}/{track}.mp3"
            fixed = [f"track_{track:07d}", "artist_000005", "album_000033", path, f"{SECONDS}"]
            lines.append("\t".join([*fixed, *tags]))
    file = root / f"autotagging_{subset}-{split}.tsv"
    file.write_bytes("".join(line + "\r\n" for line in lines).encode())


def nsynth(root: Path) -> dict[str, int]:
    """16 kHz wav of 4 s and examples.json; the family synth_lead has an underscore of its own."""
    notes = {
        "train": ["bass_synthetic_033-022-050", "synth_lead_synthetic_001-060-127"],
        "valid": ["guitar_acoustic_010-060-075", "vocal_acoustic_001-072-100"],
        "test": ["organ_electronic_007-048-025", "string_acoustic_014-061-050"],
    }
    for split, names in notes.items():
        examples = {}
        for number, name in enumerate(names):
            instrument, pitch, velocity = name.split("-")
            family, source, _ = instrument.rsplit("_", 2)
            sound(root / f"nsynth-{split}/audio/{name}.wav", 16_000, 4.0)
            examples[name] = {
                "note": number,
                "note_str": name,
                "instrument_str": instrument,
                "instrument_family_str": family,
                "instrument_source_str": source,
                "pitch": int(pitch),
                "velocity": int(velocity),
                "sample_rate": 16000,
            }
        (root / f"nsynth-{split}/examples.json").write_text(json.dumps(examples))
    return {"train": 2, "validation": 2, "test": 2}


def jamendo_tars(target: Path, root: Path) -> None:
    """Packs 41/ ... as raw_30s_audio-low-41.tar ... and lists their SHA-256 as published."""
    lines = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        archive = target / f"raw_30s_audio-low-{folder.name}.tar"
        tar_folder(archive, root, [folder.name], "w")
        lines.append(f"{hashlib.sha256(archive.read_bytes()).hexdigest()} {archive.name}\n")
    (target / "raw_30s_audio-low_sha256_tars.txt").write_text("".join(lines))


def zip_folder(
    archive: Path, root: Path, names: Iterable[str], rename: tuple[str, str] = ("", "")
) -> None:
    """Packs the files of root/<name> of each name into a .zip, the start of their names changed."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for name in names:
            for file in (path for path in sorted((root / name).rglob("*")) if path.is_file()):
                inside = file.relative_to(root).as_posix().removeprefix(rename[0])
                out.write(file, rename[1] + inside)


def tar_folder(archive: Path, root: Path, names: Iterable[str], mode: str = "w:gz") -> None:
    """Packs root/<name> of each name into a tar."""
    with tarfile.open(archive, mode) as out:
        for name in names:
            out.add(root / name, name)
