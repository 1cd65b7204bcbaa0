#!/usr/bin/env python3
"""Runs the study: pre-trains the paper's 12 configurations, probes them, and writes a report.

    python launch/study.py --scale=demo                        # on synthesised music, on a CPU
    python launch/study.py --scale=base --dry_run              # every stage as a command
    python launch/study.py --scale=base --cost --topology=v5e:4x4,v5p:4x4x4
    python launch/study.py --scale=base --manual_dir=CORPORA   # each in CORPORA/<builder>

The stages are commands: build data, pre-train, probe an encoder on a data set, report. A stage is
skipped if its result exists, so running this again after any interruption resumes the study. To add
a configuration, add a variant in configs/ and a line in MODELS. launch/study.md says how to spread
the stages over a cluster.

FLAGs after -- are passed to every pre-training command, for instance --config.mesh.fsdp=4. Exit
codes: 0 complete, 2 a request that cannot be met, 75 asked to end; otherwise, that of the first
stage that failed.
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
from typing import Any, NamedTuple

import ml_collections

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from launch import stages, study_cost  # noqa: E402
from launch.stages import Stage  # noqa: E402
from musicssl import paths  # noqa: E402
from musicssl.exchange import huggingface, model_config  # noqa: E402
from musicssl.features.baselines import BASELINES  # noqa: E402
from musicssl.probing import tasks  # noqa: E402
from musicssl.runtime.workdir import git_commit  # noqa: E402


class Model(NamedTuple):
    """A configuration, configs/<family>.py:<variant>. teacher: the model whose encoder it needs."""

    family: str
    variant: str
    teacher: str = ""

    @property
    def name(self) -> str:
        return f"{self.family}-{self.variant}"


MODELS = (  # the paper's 12; the others of a family vary its first
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


class _Scale(NamedTuple):
    """How large a study is.

    suffix: of the variants' names. music: the data set to pre-train on. tasks: the probed tasks,
    unless --tasks names others. probe: flags of the evaluator: those for one data set under its
    name, those for all others under "".
    """

    suffix: str
    music: str
    tasks: str
    probe: dict[str, tuple[str, ...]]


_MOST_JOBS = 4  # at a time, unless --jobs says more; each takes 2 GB of memory
_DEMO_PROBES = {
    "synth_music": ("--config=configs/probe.py:quick", "--config.epochs=6", "--config.limit=24"),
    "synth_polyphony": ("--config=configs/probe.py:polyphony", "--config.epochs=20"),
    "": ("--config=configs/probe.py:quick",),
}
_SCALES = {
    "demo": _Scale("_demo", "synth_music", "synth,poly", _DEMO_PROBES),
    "base": _Scale("", "music_folder", "mir,poly", {"": ("--config=configs/probe.py",)}),
}


class StudyEncoder(NamedTuple):
    """An encoder that is probed.

    kind: pre-trained, random, features or given. spec: its name for musicssl.probe. model: its
    configuration, if it has one.
    """

    name: str
    kind: str
    spec: str
    model: Model | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study, or print what was asked for; return the exit code."""
    options = parse(arguments)
    os.chdir(_ROOT)
    try:
        study = Study(options)
        if options.cost:
            models = [
                study_cost.Costed(m.name, study.config_name(m), study.config(m))
                for m in study.pretrained()
            ]
            return study_cost.main(models, options.topology, options.workdir, options.dry_run)

        all_stages = study.stages()
        known = "as --dry_run without it lists them"
        chosen = _choose(options.stages, all_stages, "--stages", known)
        if options.dry_run:
            _show(chosen, options.workdir)
            return 0
        chosen = stages.without_complete(chosen, all_stages, options.workdir)
        study.save()
        return stages.run(chosen, options.workdir, options.jobs, git_commit)
    except (FileNotFoundError, ValueError) as error:
        print(f"study: {error}", file=sys.stderr)
        return 2


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command's options; argparse refuses impossible ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--scale", choices=_SCALES, required=True)
    add("--models", default="*", help="names or patterns, also of baselines, comma-separated")
    add("--tasks", default="", help="names or suites of probing/tasks.py (by default the scale's)")
    add(
        "--encoders",
        type=lambda text: [_place(x) for x in text.split(",") if x],
        default=[],
        help="Hugging Face directories to probe as well, comma-separated",
    )
    add("--workdir", type=_place, default=Path("runs/study"))
    add("--data_dir", type=_place, default=Path("data"), help="where data sets are built")
    add("--manual_dir", type=_place, help="has the files of data set NAME in the folder NAME")
    add("--stages", default="*", help="run only these; patterns such as 'pretrain/*'")
    add("--jobs", type=int, help="stages at a time, each on its share of the cores")
    add("--dry_run", "--dry-run", action="store_true", help="print the commands, run nothing")
    add("--cost", action="store_true", help="print the cost of pre-training, by musicssl.plan")
    add("--topology", default="v5e:4x4", help="for --cost, as musicssl.plan takes it")
    add("flags", nargs="*", metavar="FLAG", help="after --: passed to every pre-training")
    options = parser.parse_args(arguments)

    if options.jobs is None:  # small models need as much processor time on one core as on two
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        options.jobs = min(cores, _MOST_JOBS) if options.scale == "demo" else 1
    other = [x for x in options.flags if not x.startswith("--config.")]
    if other:
        parser.error(f"{other[0]}: only --config. flags for pre-training may follow --")
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}: use 1 or more")
    return options


def _place(path: str) -> Path:
    """Return an absolute path, always spelt in the same way, since commands are compared."""
    try:
        whole = Path(os.path.abspath(paths.local(path)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return whole.relative_to(_ROOT) if whole.is_relative_to(_ROOT) else whole


def _choose(patterns: str, named: list, flag: str, known: str) -> list:
    """Return the things whose names match one of the patterns.

    Args:
      patterns: names with wildcards, comma-separated.
      flag, known: for the message: the flag of the patterns, and where the names are listed.

    Raises:
      ValueError: a pattern matches none of them.
    """
    chosen = set()
    for pattern in patterns.split(","):
        matching = fnmatch.filter([x.name for x in named], pattern)
        if not matching:
            raise ValueError(f"{flag}: {pattern!r} matches nothing: use names or patterns {known}")
        chosen.update(matching)
    return [x for x in named if x.name in chosen]


def _given_encoder(path: Path) -> StudyEncoder:
    """Return a Hugging Face directory as an encoder.

    Raises:
      FileNotFoundError, ValueError: it is no such directory, or its architecture cannot be read.
    """
    if not path.is_dir():
        raise ValueError(f"--encoders: {path} is not there: give local Hugging Face directories")
    config = path / "config.json"
    model_config.read_encoder(huggingface.read_json(config), config)
    huggingface.read_preprocessor(path)
    return StudyEncoder(path.name, "given", str(path))


class Study:
    """What is compared, on which tasks, and the stages that lead there."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.scale = options, _SCALES[options.scale]
        self.workdir = options.workdir
        try:
            self.tasks = tasks.choose(options.tasks or self.scale.tasks)
        except ValueError as error:
            raise ValueError(f"--tasks={options.tasks}: {error}") from None
        self.datasets = list(dict.fromkeys(task.dataset for task in self.tasks))

        known_encoders = self._known_encoders()
        known = f"of {', '.join(x.name for x in known_encoders)}"
        self.encoders = _choose(options.models, known_encoders, "--models", known)
        self.encoders += [_given_encoder(path) for path in options.encoders]
        names = [x.name for x in self.encoders]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"--encoders: two are called {twice[0]}: rename a directory")

    def _known_encoders(self) -> list[StudyEncoder]:
        """Return the models and the baselines, one of random initial values for each family."""
        trained = [StudyEncoder(m.name, "pre-trained", str(self.place(m)), m) for m in MODELS]
        firsts = {m.family: m for m in reversed(MODELS)}
        random = [
            StudyEncoder(f"random-{m.family}", "random", f"random:{self.place(m)}", m)
            for m in reversed(firsts.values())
        ]
        features = [StudyEncoder(name, "features", name) for name in BASELINES]
        return trained + random + features

    def place(self, model: Model) -> Path:
        """Return the workdir of a model."""
        return self.workdir / model.name

    def pretrained(self) -> list[Model]:
        """Return the models to train: those that the probed encoders need, and their teachers."""
        wanted = {x.model.name for x in self.encoders if x.model}
        wanted |= {m.teacher for m in MODELS if m.name in wanted and m.teacher}
        return [m for m in MODELS if m.name in wanted]

    def stages(self) -> list[Stage]:
        """Return all stages, in an order in which they can run."""
        datasets = dict.fromkeys([self.scale.music, *self.datasets])
        in_order = [self._build(name) for name in datasets]
        in_order += [self._pretrain(model) for model in self.pretrained()]
        for encoder in self.encoders:
            in_order += [self._probe(encoder, name) for name in self.datasets]
        return [*in_order, self._report()]

    def _build(self, name: str) -> Stage:
        """Return the stage that builds a data set."""
        command = ["python", "-m", "data_pipelines.build", name]
        command.append(f"--data_dir={self.options.data_dir}")
        manual = self.options.manual_dir
        if manual and (manual / name).is_dir():
            command.append(f"--manual_dir={manual / name}")
        folder = Path(self.options.data_dir, name)

        def there() -> bool:
            descriptions = folder.rglob("dataset_info.json")
            return any(not x.parent.name.startswith("incomplete.") for x in descriptions)

        return Stage(f"data/{name}", tuple(command), there)

    def _pretrain(self, model: Model) -> Stage:
        """Return the stage that trains a model, after its teacher if it has one."""
        command = ["python", "-m", "musicssl.main", f"--config={self.config_name(model)}"]
        command += [f"--config.data.data_dir={self.options.data_dir}"]
        needs = [f"data/{self.scale.music}"]
        if model.teacher:
            command.append(f"--config.teacher.encoder={self.workdir / model.teacher}")
            needs.append(f"pretrain/{model.teacher}")
        command += [f"--workdir={self.place(model)}", *self.options.flags]

        # The product is the checkpoint of the last step.
        steps = str(self.config(model).steps)
        for flag in self.options.flags:
            if flag.startswith("--config.steps="):
                steps = flag.partition("=")[2]
        last = self.place(model) / "checkpoints" / steps
        return Stage(f"pretrain/{model.name}", tuple(command), last.is_dir, tuple(needs))

    def config_name(self, model: Model) -> str:
        """Return a model's configuration as --config takes it."""
        return f"configs/{model.family}.py:{model.variant}{self.scale.suffix}"

    def config(self, model: Model) -> ml_collections.ConfigDict:
        """Return the configuration of a model at this scale.

        Raises:
          ValueError: there is no such configuration.
        """
        family = importlib.import_module(f"configs.{model.family}")
        return family.get_config(model.variant + self.scale.suffix)

    def _probe(self, encoder: StudyEncoder, dataset: str) -> Stage:
        """Return the stage that probes an encoder on the tasks of a data set."""
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

        needs = [f"data/{dataset}"]
        if encoder.model:
            needs.append(f"pretrain/{encoder.model.name}")
        there = (results / "results.md").is_file  # written after the last task
        return Stage(f"probe/{encoder.name}/{dataset}", tuple(command), there, tuple(needs))

    def results(self, encoder: StudyEncoder, dataset: str) -> Path:
        """Return the folder of an encoder's results on a data set."""
        return self.workdir / "probes" / encoder.name / dataset

    def _report(self) -> Stage:
        """Return the stage that writes the report, after all others."""
        command = ("python", "-m", "musicssl.study_report", f"--workdir={self.workdir}")
        page, plan = self.workdir / "report/index.html", self.workdir / "study.json"

        def there() -> bool:  # and of this plan, not an earlier one
            return page.exists() and page.stat().st_mtime >= plan.stat().st_mtime

        return Stage("report", command, there, last=True)

    def save(self) -> None:
        """Write <workdir>/study.json, which tells the report what the study consists of."""
        study = {
            "command": shlex.join(["python", "launch/study.py", *sys.argv[1:]]),
            "scale": self.options.scale,
            "tasks": [task.name for task in self.tasks],
            "datasets": self.datasets,
            "encoders": [self._describe(encoder) for encoder in self.encoders],
            "commands": {x.name: list(x.command) for x in self.stages()},
        }
        self.workdir.mkdir(parents=True, exist_ok=True)
        path, text = self.workdir / "study.json", json.dumps(study, indent=1) + "\n"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)

    def _describe(self, encoder: StudyEncoder) -> dict[str, Any]:
        """Return an encoder in the form of study.json."""
        model = encoder.model
        return {
            "name": encoder.name,
            "kind": encoder.kind,
            "spec": encoder.spec,
            "family": model.family if model else "",
            "config": self.config_name(model) if model else "",
            "workdir": str(self.place(model)) if model else "",
            "results": {name: str(self.results(encoder, name)) for name in self.datasets},
        }


def _show(chosen: list[Stage], folder: Path) -> None:
    """Print each stage as a command, with its name, needs and state as comments."""
    for number, stage in enumerate(chosen, 1):
        needs = f", needs {', '.join(stage.needs)}" if stage.needs else ""
        state = "complete" if stages.complete(stage, folder) else "to do"
        print(f"# {number} of {len(chosen)}: {stage.name}: {state}{needs}")
        print(shlex.join(stage.command))


if __name__ == "__main__":
    sys.exit(main())
