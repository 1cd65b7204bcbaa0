#!/usr/bin/env python3
"""The study: the paper's 12 configurations and baselines, pre-trained, probed, in one report.

    python launch/study.py --scale=demo                        # on synthesised music, on a CPU
    python launch/study.py --scale=base --dry-run              # every stage as a command
    python launch/study.py --scale=base --cost --topology=v5e:4x4,v5p:4x4x4
    python launch/study.py --scale=base --manual_dir=CORPORA   # each in CORPORA/<builder>

Stages are commands: build data, pre-train, probe (an encoder on a data set), report. Each is
skipped where its result is there, so running this again after any interruption goes on. Another
configuration is a variant in configs/ and a line in MODELS. launch/study.md: on clusters.

FLAGs after -- go to every pre-training command: --config.mesh.fsdp=4 and the like.
Exit codes: 0 complete, 2 a request that cannot be met, 75 asked to end, others: of the first stage
that failed.
"""

import argparse
import fnmatch
import importlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launch import stages, study_cost  # noqa: E402
from launch.stages import Stage  # noqa: E402
from musicssl.exchange import huggingface, model_config  # noqa: E402
from musicssl.features.baselines import BASELINES  # noqa: E402
from musicssl.probing import tasks  # noqa: E402
from musicssl.runtime.workdir import git_commit  # noqa: E402


class Model(NamedTuple):
    """A configuration: configs/<family>.py:<variant>. teacher: the model whose encoder it needs."""

    family: str
    variant: str
    teacher: str = ""

    @property
    def name(self) -> str:
        return f"{self.family}-{self.variant}"


MODELS = (  # the paper's 12; the first of a family is the one that its others vary
    Model("music2vec", "vanilla"),
    Model("music2vec", "800k"),
    Model("music2vec", "crop5s"),
    Model("music2vec", "prob50"),
    Model("music2vec", "prob80"),
    Model("music2vec", "span5"),
    Model("music2vec", "span15"),
    Model("music2vec", "target12"),
    Model("musichubert", "k500"),
    Model("musichubert", "k500_mfcc60"),
    Model("musichubert", "k2000_iter1"),
    Model("musichubert", "k2000_iter2", teacher="musichubert-k2000_iter1"),
)


class Scale(NamedTuple):
    """suffix: of the variants. music: what is pre-trained on. probe: settings of the evaluator,
    those of a data set under its name, of all others under ""."""

    suffix: str
    music: str
    tasks: str
    probe: dict[str, tuple[str, ...]]


MOST_JOBS = 4  # at a time, unless --jobs asks for more: 2 GB of memory each
DEMO_PROBES = {
    "synth_music": ("--config=configs/probe.py:quick", "--config.epochs=6", "--config.limit=24"),
    "synth_polyphony": ("--config=configs/probe.py:polyphony", "--config.epochs=20"),
    "": ("--config=configs/probe.py:quick",),
}
SCALES = {
    "demo": Scale("_demo", "synth_music", "synth,poly", DEMO_PROBES),
    "base": Scale("", "music_folder", "mir,poly", {"": ("--config=configs/probe.py",)}),
}


class StudyEncoder(NamedTuple):
    """What is probed. kind: pre-trained, random, features, given. spec: for musicssl.probe."""

    name: str
    kind: str
    spec: str
    model: Model | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    os.chdir(ROOT)
    try:
        study = Study(options)
        if options.cost:
            models = [
                study_cost.Costed(m.name, study.config_name(m), study.config(m))
                for m in study.pretrained()
            ]
            return study_cost.main(models, options.topology, options.workdir, options.dry_run)
        every = study.stages()
        chosen = named(options.stages, every, "--stages", "as --dry-run without it lists them")
        if options.dry_run:
            show(chosen, options.workdir)
            return 0
        chosen = stages.without_complete(chosen, every, options.workdir)
        study.save()
        return stages.run(chosen, options.workdir, options.jobs, git_commit)
    except (FileNotFoundError, ValueError) as error:
        print(f"study: {error}", file=sys.stderr)
        return 2


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--scale", choices=SCALES, required=True)
    add("--models", default="*", help="names or patterns, baselines too, comma-separated")
    add("--tasks", default="", help="names or suites of probing/tasks.py (by default the scale's)")
    add("--encoders", default="", help="Hugging Face directories to probe too, comma-separated")
    add("--workdir", type=placed, default=Path("runs/study"))
    add("--data_dir", type=placed, default=Path("data"), help="where data sets are built")
    add("--manual_dir", type=placed, help="has the files of data set NAME in the folder NAME")
    add("--stages", default="*", help="patterns such as 'pretrain/*': these alone")
    add("--jobs", type=int, help="stages at a time, each on its share of the cores")
    add("--dry-run", action="store_true", help="print the commands, run nothing")
    add("--cost", action="store_true", help="print what pre-training takes, by musicssl.plan")
    add("--topology", default="v5e:4x4", help="for --cost, as musicssl.plan takes it")
    add("flags", nargs="*", metavar="FLAG", help="after --, for every pre-training")
    options = parser.parse_args(arguments)
    if options.jobs is None:  # small models take as much processor time on one core as on two
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        options.jobs = min(cores, MOST_JOBS) if options.scale == "demo" else 1
    options.encoders = [placed(x) for x in options.encoders.split(",") if x]
    if other := [x for x in options.flags if not x.startswith("--config.")]:
        parser.error(f"{other[0]}: what comes after -- are --config. flags for pre-training")
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}: use 1 or more")
    return options


def placed(path: str) -> Path:
    """A path as the caller's shell means it; in one spelling, since commands are compared."""
    whole = Path(os.path.abspath(path))
    return whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole


def named(patterns: str, things: list, flag: str, known: str) -> list:
    """Those of the things whose names match one of the patterns.

    Raises:
      ValueError: a pattern matches none of them.
    """
    each = patterns.split(",")
    for pattern in each:
        if not any(fnmatch.fnmatchcase(x.name, pattern) for x in things):
            raise ValueError(f"{flag}: {pattern!r} names none: use names or patterns {known}")
    return [x for x in things if any(fnmatch.fnmatchcase(x.name, y) for y in each)]


def given(path: Path) -> StudyEncoder:
    """A Hugging Face directory as an encoder.

    Raises:
      FileNotFoundError, ValueError: it is none, or of an architecture that cannot be read.
    """
    if not path.is_dir():
        raise ValueError(f"--encoders: {path} is not there: give local Hugging Face directories")
    for name, read in (
        ("config.json", model_config.read_encoder),
        ("preprocessor_config.json", model_config.read_preprocessor),
    ):
        read(huggingface.read_json(path / name), path / name)
    return StudyEncoder(path.name, "given", str(path))


class Study:
    """What is compared, on which tasks, and the stages that lead there."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.scale = options, SCALES[options.scale]
        self.workdir = options.workdir
        self.tasks = tasks.choose(options.tasks or self.scale.tasks)
        self.datasets = list(dict.fromkeys(task.dataset for task in self.tasks))
        everything = self.everything()
        known = f"of {', '.join(x.name for x in everything)}"
        self.encoders = named(options.models, everything, "--models", known)
        self.encoders += [given(path) for path in options.encoders]
        names = [x.name for x in self.encoders]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"--encoders: two are called {twice[0]}: rename a directory")

    def everything(self) -> list[StudyEncoder]:
        """The models and the baselines, one of random initial values for each family."""
        trained = [StudyEncoder(m.name, "pre-trained", str(self.place(m)), m) for m in MODELS]
        firsts = {m.family: m for m in reversed(MODELS)}
        random = [
            StudyEncoder(f"random-{m.family}", "random", f"random:{self.place(m)}", m)
            for m in reversed(firsts.values())
        ]
        return trained + random + [StudyEncoder(name, "features", name) for name in BASELINES]

    def place(self, model: Model) -> Path:
        return self.workdir / model.name

    def pretrained(self) -> list[Model]:
        """Models that have to be there: those probed, those whose shape is, and their teachers."""
        wanted = {x.model.name for x in self.encoders if x.model}
        wanted |= {m.teacher for m in MODELS if m.name in wanted and m.teacher}
        return [m for m in MODELS if m.name in wanted]

    def stages(self) -> list[Stage]:
        """All stages, in an order in which they can run."""
        found = [self.build(name) for name in dict.fromkeys([self.scale.music, *self.datasets])]
        found += [self.pretrain(model) for model in self.pretrained()]
        found += [self.probe(x, name) for x in self.encoders for name in self.datasets]
        return [*found, self.report()]

    def build(self, name: str) -> Stage:
        command = [
            "python",
            "-m",
            "data_pipelines.build",
            name,
            f"--data_dir={self.options.data_dir}",
        ]
        manual = self.options.manual_dir
        if manual and (manual / name).is_dir():
            command.append(f"--manual_dir={manual / name}")
        folder = Path(self.options.data_dir, name)

        def there() -> bool:
            found = folder.rglob("dataset_info.json")
            return any(not x.parent.name.startswith("incomplete.") for x in found)

        return Stage(f"data/{name}", tuple(command), there)

    def pretrain(self, model: Model) -> Stage:
        steps = self.config(model).steps
        command = ["python", "-m", "musicssl.main", f"--config={self.config_name(model)}"]
        command += [f"--config.data.data_dir={self.options.data_dir}"]
        needs = [f"data/{self.scale.music}"]
        if model.teacher:
            command.append(f"--config.teacher.encoder={self.workdir / model.teacher}")
            needs.append(f"pretrain/{model.teacher}")
        command += [f"--workdir={self.place(model)}", *self.options.flags]
        given = [x.partition("=")[2] for x in self.options.flags if x.startswith("--config.steps=")]
        last = self.place(model) / "checkpoints" / (given or [str(steps)])[-1]
        return Stage(f"pretrain/{model.name}", tuple(command), last.is_dir, tuple(needs))

    def config_name(self, model: Model) -> str:
        return f"configs/{model.family}.py:{model.variant}{self.scale.suffix}"

    def config(self, model: Model):
        """The configuration of a model at this scale.

        Raises:
          ValueError: there is none.
        """
        family = importlib.import_module(f"configs.{model.family}")
        return family.get_config(model.variant + self.scale.suffix)

    def probe(self, encoder: StudyEncoder, dataset: str) -> Stage:
        results = self.results(encoder, dataset)
        chosen = [task.name for task in self.tasks if task.dataset == dataset]
        settings = self.scale.probe.get(dataset, self.scale.probe[""])
        command = ["python", "-m", "musicssl.probe", *settings]
        command += [
            f"--config.encoder={encoder.spec}",
            f"--config.tasks={','.join(chosen)}",
            f"--config.data_dir={self.options.data_dir}",
            f"--config.cache={self.workdir / 'features' / encoder.name}",
            f"--config.results={results}",
        ]
        needs = [f"data/{dataset}"] + [f"pretrain/{m.name}" for m in [encoder.model] if m]
        there = (results / "results.md").is_file  # written after the last task
        return Stage(f"probe/{encoder.name}/{dataset}", tuple(command), there, tuple(needs))

    def results(self, encoder: StudyEncoder, dataset: str) -> Path:
        return self.workdir / "probes" / encoder.name / dataset

    def report(self) -> Stage:
        command = ("python", "-m", "musicssl.study_report", f"--workdir={self.workdir}")
        page, plan = self.workdir / "report/index.html", self.workdir / "study.json"

        def there() -> bool:  # of this plan
            return page.exists() and page.stat().st_mtime >= plan.stat().st_mtime

        return Stage("report", command, there, last=True)

    def save(self) -> None:
        """Writes <workdir>/study.json, from which the report knows what there is."""
        told = {
            "command": shlex.join(["python", "launch/study.py", *sys.argv[1:]]),
            "scale": self.options.scale,
            "tasks": [task.name for task in self.tasks],
            "datasets": self.datasets,
            "encoders": [
                {
                    "name": x.name,
                    "kind": x.kind,
                    "spec": x.spec,
                    "family": x.model.family if x.model else "",
                    "config": self.config_name(x.model) if x.model else "",
                    "workdir": str(self.place(x.model)) if x.model else "",
                    "results": {name: str(self.results(x, name)) for name in self.datasets},
                }
                for x in self.encoders
            ],
            "commands": {x.name: list(x.command) for x in self.stages()},
        }
        self.workdir.mkdir(parents=True, exist_ok=True)
        path, text = self.workdir / "study.json", json.dumps(told, indent=1) + "\n"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def show(chosen: list[Stage], folder: Path) -> None:
    """Prints each stage as a command, with its name, needs and state as comments."""
    for number, stage in enumerate(chosen, 1):
        needs = f", needs {', '.join(stage.needs)}" if stage.needs else ""
        state = "complete" if stages.complete(stage, folder) else "to do"
        print(f"# {number} of {len(chosen)}: {stage.name}: {state}{needs}")
        print(shlex.join(stage.command))


if __name__ == "__main__":
    sys.exit(main())
