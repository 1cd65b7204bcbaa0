"""Pictures of the pages that show results: a study's, the leaderboard, and TensorBoard.

    python -m tests.study.screenshots --output=DIR [--run=runs/musichubert-demo_filterbank]

The numbers of the study and of the leaderboard are fabricated, and a note at the top of both pages
says so. TensorBoard shows a real run, and is pictured only if --run names one. The command needs
Chromium or Chrome on PATH (`apt-get install chromium`).
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from PIL import Image

from musicssl.probing.tasks import TASKS
from musicssl.study import leaderboard, report
from tests.support import fabricated_study

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MOST_BYTES = 150_000
WITHIN = 120  # seconds, for the browser and for TensorBoard to start
PATIENCE = 30_000  # ms that pass on a page's own clock before it is pictured
MADE_UP = "<p class='note'><b>Every number on this page is made up</b>, to show what it looks like."
ENCODERS = {  # of the fabricated leaderboard, and what each one's features are
    "runs/music2vec-mine": "hidden states of 13 layers",
    "runs/musichubert-mine": "hidden states of 13 layers",
    "random:runs/music2vec-mine": "hidden states of 13 layers, of random initial values",
    "logmel": "a log-mel spectrum",
    "mfcc": "MFCCs",
}
WANTED = "magnatagatune gtzan_genre emomusic nsynth_pitch vocalset_technique synth_key synth_beat"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="a folder for the pictures")
    parser.add_argument("--run", type=Path, help="the workdir of a run, to show in TensorBoard")
    options = parser.parse_args()
    if options.run and not list(options.run.glob("events.out.tfevents.*")):
        parser.error(
            f"--run={options.run} has no events for TensorBoard: give the workdir of a run"
        )
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        parser.error(f"none of {', '.join(BROWSERS)} is on PATH: apt-get install chromium")
    options.output.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory() as folder:
        pages = {"study": study(Path(folder)), "leaderboard": compared(Path(folder))}
        for name, page in pages.items():
            text = page.read_text()
            page.write_text(re.sub("</h1>", f"</h1>{MADE_UP}</p>", text, count=1))
            take(browser, page.as_uri(), options.output / f"{name}.png", 1240, 1000)
        if options.run:
            with tensorboard(options.run, Path(folder) / "shown") as address:
                shown = f"{address}/?tagFilter=%5Eloss%24%7C%5Emasked_accuracy#timeseries"
                take(browser, shown, options.output / "tensorboard.png", 1440, 1030, kept=1190)


def study(folder: Path) -> Path:
    """Fabricates a study of the demo's size and returns its page."""
    with mock.patch.object(sys, "argv", ["launch/study.py", "--scale=demo"]):  # the page shows it
        fabricated_study.fabricate(folder / "study")
    report.write(folder / "study")
    return folder / "study/report/index.html"


def compared(folder: Path) -> Path:
    """Fabricates results of a few encoders and returns their leaderboard."""
    folders = []
    for number, (encoder, features) in enumerate(ENCODERS.items()):
        told = {
            name: fabricated_study.result(TASKS[name], number, single="run" not in encoder)
            for name in WANTED.split()
        }
        results = {"encoder": encoder, "features": features, "config": {}, "tasks": told}
        folders.append(folder / "results" / str(number))
        folders[-1].mkdir(parents=True)
        (folders[-1] / "results.json").write_text(json.dumps(results))
    leaderboard.write(folders, folder / "leaderboard")
    return folder / "leaderboard/compare.html"


@contextlib.contextmanager
def tensorboard(run: Path, folder: Path) -> Iterator[str]:
    """Serves one run under its own name for as long as the context lasts; yields the address."""
    folder.mkdir()
    (folder / run.name).symlink_to(run.absolute())
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", "--port=0"]
    log = folder.with_suffix(".log")
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        for _ in range(2 * WITHIN):
            if found := re.search(r"http://\S+?(?=/? )", log.read_text()):
                yield found[0]
                return
            if server.poll() is not None:
                break
            time.sleep(0.5)
        sys.exit(f"TensorBoard did not start:\n{log.read_text()}")
    finally:
        server.terminate()
        server.wait()


def take(
    browser: str, address: str, picture: Path, width: int, height: int, kept: int | None = None
) -> None:
    """Pictures the top of a page, its first `kept` columns, in as many colours as MOST_BYTES hold.

    Without WebGL, TensorBoard draws its curves as SVG, which a headless browser pictures.
    """
    with tempfile.TemporaryDirectory() as profile:
        command = [
            *(browser, "--headless", "--no-first-run", "--disable-gpu", "--disable-3d-apis"),
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            *("--hide-scrollbars", "--disable-background-networking", f"--user-data-dir={profile}"),
            *(f"--window-size={width},{height}", f"--virtual-time-budget={PATIENCE}"),
            *(f"--screenshot={picture.absolute()}", address),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=WITHIN, check=False
            )
        except subprocess.TimeoutExpired:
            sys.exit(f"{browser} took no picture of {address} within {WITHIN} s")
    if not picture.is_file():
        sys.exit(f"{browser} took no picture of {address}:\n{done.stderr[-2000:]}")
    whole = Image.open(picture).convert("RGB").crop((0, 0, kept or width, height))
    for colours in (256, 128, 64, 32, 16):
        whole.quantize(colours, dither=Image.Dither.NONE).save(picture, optimize=True)
        if picture.stat().st_size <= MOST_BYTES:
            break
    print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
