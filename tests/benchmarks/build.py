"""A music_folder build: its speed beside decoding alone, and its memory by size of the corpus.

    python -m tests.benchmarks.build [--hours=4] [--files=10000] [--workers=2]

It fabricates 44.1 kHz stereo mp3s in a temporary folder (some GB with 10,000 files). Speed is
audio time by processor time, so that a busy machine counts less: the build and the decoding alone
take turns, and the median of three is shown. Memory is the largest sum of the proportional set
sizes of all processes of the command, for a tenth of the files, a half, and all of them.
"""

import argparse
import contextlib
import io
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import soundfile
from tqdm import tqdm

RATE = 44_100
LEAST = 300  # times real time per core
MEMORY_SECONDS = 6.0  # of a file of the corpus that memory is measured on
TRACK_SECONDS = 180.0  # of a file of the corpus that speed is measured on
RECORD_RATE = 16_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=4.0, help="for the speed; 0 leaves it out")
    parser.add_argument("--files", type=int, default=10_000, help="for the memory; 0 leaves it out")
    parser.add_argument("--workers", type=int, default=2, help="for the memory")
    arguments = parser.parse_args()
    if arguments.hours:
        with tempfile.TemporaryDirectory() as folder:
            speed(Path(folder), arguments.hours)
    if arguments.files:
        with tempfile.TemporaryDirectory() as folder:
            memory(Path(folder), arguments.files, arguments.workers)
    print(machine())


def speed(folder: Path, hours: float) -> None:
    """Prints the build's speed in one process and that of its decoding and resampling alone."""
    from data_pipelines import decode

    music = folder / "music"
    files = fabricate(music, round(3600 * hours / TRACK_SECONDS), TRACK_SECONDS)
    seconds = len(files) * TRACK_SECONDS

    def decode_all() -> None:
        for path in files:
            decode.load(path, RECORD_RATE)

    def build() -> None:
        shutil.rmtree(folder / "data", ignore_errors=True)
        run_build(music, folder / "data")

    run_build(music / "000", folder / "warm")  # imports TensorFlow
    rounds = [(timed(decode_all), timed(build)) for _ in range(3)]
    limit, found = (
        statistics.median(seconds / cpu for cpu, _ in times) for times in zip(*rounds, strict=True)
    )
    wall = statistics.median(seconds / elapsed for _, (_, elapsed) in rounds)
    print(
        f"{hours:g} h of {RATE / 1000} kHz stereo mp3 to {RECORD_RATE / 1000:g} kHz records, "
        "per core:"
    )
    print(f"    decode and resample alone  {limit:6.0f} x real time")
    print(f"    build                      {found:6.0f} x real time, {found / limit:.2f} of it")
    verdict = "reached" if found >= LEAST else "MISSED"
    print(f"    at least                   {LEAST:6} x real time: {verdict}")
    print(f"    build by the clock         {wall:6.0f} x real time, one process")


def memory(folder: Path, files: int, workers: int) -> None:
    """Prints the peak memory of the build command for three sizes of one corpus."""
    fabricate(folder / "music", files, MEMORY_SECONDS)
    print(f"{workers} workers, files of {MEMORY_SECONDS:g} s, peak of all processes together:")
    for count in (files // 10, files // 2, files):
        part = folder / f"part {count}"
        for path in sorted((folder / "music").rglob("*.mp3"))[:count]:
            target = part / path.relative_to(folder / "music")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
        command = [sys.executable, "-m", "data_pipelines.build", "music_folder"]
        command += [f"--manual_dir={part}", f"--data_dir={folder / 'data'}", f"--workers={workers}"]
        start = time.monotonic()
        peak = peak_memory(command)
        elapsed = time.monotonic() - start
        hours = count * MEMORY_SECONDS / 3600
        print(
            f"    {count:6} files, {hours:5.1f} h, {hours * 115.2:6.0f} MB of records: "
            f"{peak / 1e6:5.0f} MB in {elapsed:.0f} s"
        )
        shutil.rmtree(folder / "data")


def peak_memory(command: list[str]) -> int:
    """Runs a command and returns the largest sum of its processes' memory, in bytes."""
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        held = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    held += one.memory_full_info().pss
        peak = max(peak, held)
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return peak


def run_build(music: Path, data: Path) -> None:
    """Builds in this process, with one worker."""
    from data_pipelines import build

    flags = [f"--manual_dir={music}", f"--data_dir={data}", "--workers=1"]
    with contextlib.redirect_stdout(io.StringIO()):
        if build.main(["music_folder", *flags]):
            raise SystemExit(1)


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """Returns the processor and the clock seconds that a call takes."""
    clock, cpu = time.monotonic(), time.process_time()
    function()
    return time.process_time() - cpu, time.monotonic() - clock


def fabricate(folder: Path, count: int, seconds: float) -> list[Path]:
    """Writes stereo mp3s of chords in folders of 100; four different ones, copied."""
    generator = np.random.default_rng(0)
    instant = np.arange(round(seconds * RATE)) / RATE
    kinds = []
    for _ in range(4):
        audio = generator.normal(0, 0.003, (len(instant), 2))  # [n, channels]
        for hertz in 110 * 2 ** (generator.integers(0, 48, 8) / 12):
            swell = 0.5 + 0.5 * np.sin(2 * np.pi * generator.uniform(0.1, 3) * instant)
            wave = 0.05 * np.sin(2 * np.pi * hertz * instant) * swell
            audio += wave[:, None] * generator.uniform(0, 1, 2)
        file = io.BytesIO()
        soundfile.write(file, audio, RATE, format="MP3")
        kinds.append(file.getvalue())
    paths = [folder / f"{number // 100:03d}" / f"{number:05d}.mp3" for number in range(count)]
    for number, path in enumerate(tqdm(paths, "fabricating", delay=5)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kinds[number % 4])
    return paths


def machine() -> str:
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":")[1].strip()
            break
    versions = f"soundfile {soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}"
    return f"{os.cpu_count()} cores, {cpu}, Python {platform.python_version()}, {versions}"


if __name__ == "__main__":
    main()
