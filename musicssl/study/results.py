"""Collects a study's results from its folder: runs, probes, the records of its stages.

`launch/study.py` writes study.json, the training runs write metrics.jsonl, the probes results.json.
Only differences between encoders are computed here; results that do not exist yet are left out.
"""

import json
import math
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musicssl.probing import columns, published, report
from musicssl.probing.schema import TaskResult
from musicssl.runtime.workdir import git_commit, metrics, read_leaves, steps_on_disk
from musicssl.study.schema import (
    EncoderScore,
    PairedTest,
    PlannedEncoder,
    PublishedScore,
    ReportedEncoder,
    Stage,
    StageRecord,
    Study,
    StudyAbout,
    StudyPlan,
    StudyTask,
    TrainingRun,
    Variation,
)

NAMES = {"musichubert": "musicHuBERT", "logmel": "log-mel", "mfcc": "MFCC", "cqt": "CQT"}
LIKELY = 0.05  # p below which a difference is marked
# Leaves that say nothing about what a configuration varies.
_ASIDE = ("name", "variant", "then", "data.data_dir", "teacher.encoder", "checkpoint.", "probe.")
_SCORES = {
    "ap": "AP",
    "f": "F",
    "r2": "R2",
    "r2_arousal": "R2 of arousal",
    "r2_valence": "R2 of valence",
    "roc_auc": "ROC-AUC",
    "weighted": "weighted score",
}
_TRAINED = "pre-trained"
_KEPT = 200  # the most points of a training curve

_TaskResults = Mapping[str, TaskResult]  # of an encoder, by task


def collect(folder: Path) -> Study:
    """Return everything that the report shows.

    Raises:
      FileNotFoundError: the folder has no study.json.
    """
    path = folder / "study.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: launch/study.py writes it")
    plan: StudyPlan = json.loads(path.read_text())
    encoders = plan["encoders"]

    # What the runs and probes have written, by encoder.
    results = {encoder["name"]: _probe_results(encoder) for encoder in encoders}
    runs = {x["name"]: _training_run(x) for x in encoders if x["kind"] == _TRAINED}
    variations = {name: _variation(name, runs) for name in runs}

    # The tasks with a result of any encoder, and how encoders differ in them.
    with_results: set[str] = set()
    for own in results.values():
        with_results |= set(own)
    tasks = [name for name in plan["tasks"] if name in with_results]
    reference = encoders[0]["name"]
    scores: dict[str, dict[str, EncoderScore]] = {}
    for name, own in results.items():
        compared: dict[str, _TaskResults] = {"from_reference": results[reference]}
        if name in runs:
            random = f"random-{runs[name]['family']}"
            compared["from_base"] = results.get(variations[name]["base"], {})
            compared["from_random"] = results.get(random, {})
        scores[name] = {task: _score(own[task], task, compared) for task in own}

    return {
        "about": _about(plan),
        "reference": reference,
        "encoders": [
            _reported(encoder, runs, variations, plan["commands"]) for encoder in encoders
        ],
        "tasks": [_described(name, results) for name in tasks],
        "missing_tasks": [name for name in plan["tasks"] if name not in tasks],
        "scores": scores,
        "stages": _stages(folder, plan),
    }


def _about(plan: StudyPlan) -> StudyAbout:
    return {
        "scale": plan["scale"],
        "command": plan["command"],
        "commit": git_commit(),
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def _stages(folder: Path, plan: StudyPlan) -> dict[str, Stage]:
    """Return all stages, with the records of those that are complete."""
    paths = (folder / "stages").glob("*.json")
    records: list[StageRecord] = [json.loads(path.read_text()) for path in paths]
    by_name = {record["stage"]: record for record in records}
    stages: dict[str, Stage] = {}
    for name, command in plan["commands"].items():
        commit = _commit_of_result(name, plan["encoders"])
        stages[name] = {"command": command, "made": by_name.get(name), "commit": commit}
    return stages


def _commit_of_result(stage: str, encoders: list[PlannedEncoder]) -> str:
    """Return the commit that a stage's result names as its own; "" if it names none."""
    kind, _, rest = stage.partition("/")
    name, _, dataset = rest.partition("/")
    encoder = next((x for x in encoders if x["name"] == name), None)
    if encoder is None or kind not in ("pretrain", "probe"):
        return ""
    if kind == "pretrain":
        return _training_run(encoder)["commit"]
    folder = Path(encoder["results"][dataset])
    return report.load(folder).get("commit", "") if (folder / report.RESULTS).exists() else ""


def _probe_results(encoder: PlannedEncoder) -> dict[str, TaskResult]:
    """Return the results of an encoder's tasks, from all data sets."""
    results: dict[str, TaskResult] = {}
    for folder in map(Path, encoder["results"].values()):
        if (folder / report.RESULTS).exists():
            results |= report.load(folder)["tasks"]
    return results


def _training_run(encoder: PlannedEncoder) -> TrainingRun:
    """Return the contents of an encoder's workdir."""
    workdir = Path(encoder["workdir"])
    run: TrainingRun = {
        "family": encoder["family"],
        "config": encoder["config"],
        "leaves": {},
        "curves": {},
        "commit": "",
        "step": max(steps_on_disk(workdir), default=0),
        "complete": False,
    }

    # Fill in what exists.
    if (workdir / "config.json").exists():
        run["leaves"] = dict(read_leaves(workdir / "config.json"))
    saved = workdir / "checkpoints" / str(run["step"]) / "about/metadata"
    if saved.exists():
        run["commit"] = json.loads(saved.read_text())["commit"]
    run["curves"] = _curves(workdir)
    run["complete"] = bool(run["step"]) and run["step"] == run["leaves"].get("steps")
    return run


def _curves(workdir: Path) -> dict[str, list[list[float]]]:
    """Return {scalar: [[step, value], ...]}, thinned out; TensorBoard has all points."""
    lines = [scalars for _, scalars in metrics(workdir) if scalars]
    lines = lines[:: math.ceil(len(lines) / _KEPT) or 1]
    curves: dict[str, list[list[float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and not name.startswith("time/"):
                curves.setdefault(name, []).append([line["step"], value])
    return curves


def _variation(name: str, runs: Mapping[str, TrainingRun]) -> Variation:
    """Return what a configuration varies.

    Its base is that earlier run of its family from which it differs in the fewest leaves.
    """
    names = list(runs)
    variations: list[Variation] = []
    for earlier in names[: names.index(name)]:
        if runs[earlier]["family"] == runs[name]["family"]:
            leaves = _different_leaves(runs[earlier]["leaves"], runs[name]["leaves"])
            variations.append({"base": earlier, "leaves": leaves})
    first: Variation = {"base": "", "leaves": {}}
    return min(variations, key=lambda variation: len(variation["leaves"]), default=first)


def _different_leaves(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, list[Any]]:
    different = {}
    for leaf, value in ours.items():
        if not leaf.startswith(_ASIDE) and theirs.get(leaf, value) != value:
            different[leaf] = [theirs[leaf], value]
    return different


def _reported(
    encoder: PlannedEncoder,
    runs: Mapping[str, TrainingRun],
    variations: Mapping[str, Variation],
    commands: Mapping[str, list[str]],
) -> ReportedEncoder:
    name = encoder["name"]
    return {
        "name": name,
        "kind": encoder["kind"],
        "family": encoder["family"],
        "spec": encoder["spec"],
        "title": _title(encoder),
        "run": runs.get(name),
        "varies": variations.get(name),
        "stages": [
            stage
            for stage in commands
            if stage == f"pretrain/{name}" or stage.startswith(f"probe/{name}/")
        ],
    }


def _title(encoder: PlannedEncoder) -> str:
    """Return an encoder's readable name."""
    family, _, variant = encoder["name"].partition("-")
    if encoder["kind"] == "random":
        return f"random values ({NAMES.get(variant, variant)})"
    if encoder["kind"] == _TRAINED:
        return f"{NAMES.get(family, family)} {variant.replace('_', ' ')}"
    return NAMES.get(encoder["name"], encoder["name"])


def _described(name: str, results: Mapping[str, _TaskResults]) -> StudyTask:
    """Describe a task by the first encoder's result of it."""
    task = next(tasks[name] for tasks in results.values() if name in tasks)
    main = task["score"]
    scores: list[PublishedScore] = []
    for model, source, values in published.scores(name):
        if main in values:
            scores.append({"model": model, "source": source, "value": values[main]})
    return {
        "name": name,
        "title": task["title"].removeprefix("synth_music, "),
        "dataset": task["dataset"],
        "score": name_of_score(main),
        "chance": task["chance"][main],
        "items": task["items"],
        "published": scores,
    }


def name_of_score(score: str) -> str:
    """Return a score's readable name."""
    return _SCORES.get(score, score)


def _score(task: TaskResult, name: str, compared: Mapping[str, _TaskResults]) -> EncoderScore:
    """Return an encoder's score of a task, and how it differs from others.

    Args:
      name: of the task.
      compared: the results of other encoders, by the field for their test.
    """
    main, chosen = task["score"], task["chosen"]
    score: EncoderScore = {
        "mean": chosen["test"][main]["mean"],
        "sd": chosen["test"][main]["sd"],
        "interval": chosen["interval"],
        "layer": chosen["source"],
        "layers": {x["source"]: x["test"][main]["mean"] for x in task["layers"]},
        "factors": task.get("factors", {}),
        "from_reference": _paired_test(task, compared["from_reference"].get(name)),
    }
    if "from_base" in compared:
        score["from_base"] = _paired_test(task, compared["from_base"].get(name))
        score["from_random"] = _paired_test(task, compared["from_random"].get(name))
    return score


def _paired_test(task: TaskResult, other: TaskResult | None) -> PairedTest | None:
    """Test a result against another; None for itself or other test items."""
    if other is None or other is task:
        return None
    difference = columns.against([task], [other])
    if difference is None:
        return None
    return {
        "mean": difference.mean,
        "interval": [difference.low, difference.high],
        "p": difference.p,
        "likely": difference.p < LIKELY,
    }
