"""Writes the page that is kept of a recipe's runs: scores, curves, voices, commit and machine.

    python launch/record.py runs/small-1337 runs/small-2 runs/small-3 --output=DIR \\
        [--beside RESULTS ...]

The runs differ in their training seeds alone. Each has its probes (RUN/probe, with the baselines
beside them), its curves.png and, if it was probed on several voices, RUN/polyphony. DIR gets
README.md, the table of all seeds together with paired tests, pictures, and the configuration: a few
hundred kB, which a repository can hold. RESULTS are further columns of the table of probes, such as
those of a random stem (musicssl/probing/results.md). Exit codes: 0 written, 2 something is missing.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))  # where it is run as a file, without being installed

from musicssl import paths  # noqa: E402
from musicssl.probing import report  # noqa: E402
from musicssl.runtime.workdir import flat, metrics  # noqa: E402
from musicssl.training import curves  # noqa: E402

_PROBES = {"probe": "Probes", "polyphony": "Several voices"}  # folders of a run, and their headings
_RUN_OF_ITS_OWN = ("seed", "probe.data_dir", "data.data_dir")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page that the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN")
    add("--output", required=True, metavar="DIR")
    add("--beside", nargs="*", default=[], help="results of more probes")
    add("--machine", default=machine(), help="what the runs ran on, in words (this machine)")
    options = parser.parse_args(arguments)
    try:
        runs, more = map(_folder, options.runs), map(_folder, options.beside)
        print(write([*runs], _folder(options.output), options.machine, [*more]))
    except (FileNotFoundError, ValueError) as error:
        print(f"record: {error}", file=sys.stderr)
        return 2
    return 0


def _folder(path: str) -> Path:
    """Return a folder of this machine; ValueError for an address such as gs://."""
    return Path(paths.local(path, "use a folder of a disk (gcloud storage cp -r copies it)"))


def write(runs: Sequence[Path], out: Path, machine: str, more: Sequence[Path] = ()) -> Path:
    """Write the record of some runs into a folder, and return its page.

    Args:
      machine: the machine that they ran on, in words.
      more: results of other encoders in the same probes, for the first table.

    Raises:
      FileNotFoundError: a run, or what belongs to it, is not there.
      ValueError: the runs differ in more than their seeds.
    """
    configs = [_config(run) for run in runs]
    name = f"{configs[0]['name']}:{configs[0]['variant']}"
    for run, config in zip(runs, configs, strict=True):
        apart = [leaf for leaf in config if config[leaf] != configs[0].get(leaf)]
        if apart := [leaf for leaf in apart if leaf not in _RUN_OF_ITS_OWN]:
            raise ValueError(
                f"{run} and {runs[0]} differ in {', '.join(apart)}: give runs of one recipe"
            )
    out.mkdir(parents=True, exist_ok=True)

    # What was run, and where.
    probed = report.load(runs[0] / "probe")
    lines = [
        f"# {name}, {len(runs)} training seed{'s' if len(runs) > 1 else ''}",
        "",
        f"Commit {probed['commit']}, jax {probed['jax']}, {machine}. Written by",
        "`python launch/record.py`; [config.json](config.json) has every leaf.",
        "",
        "| training seed | steps | minutes of training | last loss in validation |",
        "|---|---|---|---|",
    ]
    lines += [_row(run, config) for run, config in zip(runs, configs, strict=True)]
    lines += ["", "```sh"]
    lines += [_command(config) for config in configs]
    lines += ["```", ""]
    shutil.copyfile(runs[0] / "config.json", out / "config.json")

    # Every seed's scores in one column, beside the first run's baselines.
    for folder, heading in _PROBES.items():
        if folder != "probe" and not (runs[0] / folder).exists():
            continue
        others = more if folder == "probe" else []
        lines += [f"## {heading}", "", _compared(runs, folder, others, out), ""]
        for picture in (f"{folder}.png", f"{folder}-factors.png"):
            if (out / picture).exists():
                lines += [f"![{heading}]({picture})", ""]

    lines += ["## Curves", ""]
    for run, config in zip(runs, configs, strict=True):
        drawn = run / curves.PICTURE
        if not drawn.exists():
            raise FileNotFoundError(f"{drawn} is not there: the run is not complete")
        picture = f"curves-{config['seed']}.png"
        _keep(drawn, out / picture)
        lines += [f"![Curves of training seed {config['seed']}]({picture})", ""]
    page = out / "README.md"
    page.write_text("\n".join(lines).rstrip() + "\n")
    return page


def _keep(drawn: Path, place: Path) -> None:
    """Keep a picture with a palette of 128 colours, which takes about a third of its bytes."""
    with Image.open(drawn) as picture:
        small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(place, optimize=True)


def machine() -> str:
    """Return this machine in words: its cores and its processor."""
    model = platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{os.cpu_count()} cores of {model}"


def _config(run: Path) -> dict:
    """Return the leaves of a run's configuration, by their dotted names."""
    path = run / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: give the workdirs of runs")
    return flat(json.loads(path.read_text()))


def _command(config: dict) -> str:
    """Return the command that trained a run."""
    source = f"configs/{config['name']}.py:{config['variant']}"
    seed = config["seed"]
    workdir = shlex.quote(f"runs/{config['variant']}-{seed}")
    command = f"python -m musicssl.main --config={source} --config.seed={seed}"
    return f"{command} --workdir={workdir}"


def _row(run: Path, config: dict) -> str:
    """Return a run's row of the table."""
    lives = json.loads((run / "goodput.json").read_text())
    seconds = sum(life["ended"] - life["began"] for life in lives)
    seen = [x["validation/loss"] for _, x in metrics(run) if x and "validation/loss" in x]
    loss = f"{seen[-1]:.3f}" if seen else ""
    return f"| {config['seed']} | {config['steps']} | {seconds / 60:.1f} | {loss} |"


def _compared(runs: Sequence[Path], folder: str, more: Sequence[Path], out: Path) -> str:
    """Compare a folder of all runs, and its baselines; return the table, keep the pictures."""
    first = runs[0] / folder
    beside = sorted((first / "beside").glob("*")) if (first / "beside").exists() else []
    beside.sort(key=lambda path: path.name != "random")
    held = out / ".compared"
    table = report.compare([*(run / folder for run in runs), *beside, *more], held)
    for made, kept in (("compare.png", ""), ("compare-factors.png", "-factors")):
        if (held / made).exists():
            _keep(held / made, out / f"{folder}{kept}.png")
    shutil.rmtree(held)
    return table.rstrip()


if __name__ == "__main__":
    sys.exit(main())
