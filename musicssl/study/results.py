"""What a study found, gathered from its folder: runs, probes, the records of its stages.

`launch/study.py` writes study.json, the training runs metrics.jsonl, the probes results.json.
Nothing is computed here but differences between encoders; what is not there yet is left out.
"""

import json
import math
import platform
import time
from pathlib import Path
from typing import Any

from musicssl.probing import published, report
from musicssl.runtime.workdir import git_commit, read_leaves, steps_on_disk

# Leaves that tell nothing of what a configuration varies.
ASIDE = ("name", "variant", "then", "data.data_dir", "teacher.encoder", "checkpoint.", "probe.")
NAMES = {"musichubert": "musicHuBERT", "logmel": "log-mel", "mfcc": "MFCC", "cqt": "CQT"}
SCORES = {"roc_auc": "ROC-AUC", "f": "F", "r2": "R2", "weighted": "weighted score"}
TRAINED = "pre-trained"
KEPT = 200  # points of a training curve, at most
LIKELY = 0.05  # p below which a difference is marked


def collect(folder: Path) -> dict[str, Any]:
    """Everything that the report shows, of JSON's types.

    Raises:
      FileNotFoundError: the folder has no study.json.
    """
    path = folder / "study.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: launch/study.py writes it")
    plan = json.loads(path.read_text())
    encoders, made = plan["encoders"], records(folder)
    held = {x["name"]: probes(x) for x in encoders}
    runs = {x["name"]: run(x) for x in encoders if x["kind"] == TRAINED}
    varied = {name: varies(name, runs) for name in runs}
    tasks = [name for name in plan["tasks"] if any(name in found for found in held.values())]
    reference = encoders[0]["name"]

    def scores(name: str) -> dict[str, dict]:
        others = {"from_reference": reference}
        if name in varied:
            others["from_base"] = varied[name]["base"]
            others["from_random"] = f"random-{runs[name]['family']}"
        others = {key: held.get(other, {}) for key, other in others.items()}
        return {
            task: score(result, {key: other.get(task) for key, other in others.items()})
            for task, result in held[name].items()
        }

    return {
        "about": about(plan),
        "reference": reference,
        "encoders": [
            {
                "name": x["name"],
                "kind": x["kind"],
                "family": x["family"],
                "spec": x["spec"],
                "title": title(x),
                "run": runs.get(x["name"]),
                "varies": varied.get(x["name"]),
                "stages": stages_of(x["name"], plan["commands"]),
            }
            for x in encoders
        ],
        "tasks": [described(name, held) for name in tasks],
        "missing_tasks": [name for name in plan["tasks"] if name not in tasks],
        "scores": {name: scores(name) for name in held},
        "stages": {
            name: {"command": command, "made": made.get(name), "commit": elsewhere(name, encoders)}
            for name, command in plan["commands"].items()
        },
    }


def about(plan: dict) -> dict[str, str]:
    """What made the study."""
    return {
        "scale": plan["scale"],
        "command": plan["command"],
        "commit": git_commit(),
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def records(folder: Path) -> dict[str, dict]:
    """What is noted of each complete stage, by its name."""
    noted = [json.loads(path.read_text()) for path in (folder / "stages").glob("*.json")]
    return {x["stage"]: x for x in noted}


def elsewhere(stage: str, encoders: list[dict]) -> str:
    """The commit that made a stage's result, by the result itself; "" where it does not say."""
    kind, _, rest = stage.partition("/")
    name, _, dataset = rest.partition("/")
    encoder = next((x for x in encoders if x["name"] == name), None)
    if encoder is None or kind not in ("pretrain", "probe"):
        return ""
    if kind == "pretrain":
        return run(encoder)["commit"]
    folder = Path(encoder["results"][dataset])
    return report.load(folder).get("commit", "") if (folder / report.RESULTS).exists() else ""


def probes(encoder: dict) -> dict[str, dict]:
    """The results of an encoder's tasks, from all data sets."""
    found = {}
    for folder in map(Path, encoder["results"].values()):
        if (folder / report.RESULTS).exists():
            found |= report.load(folder)["tasks"]
    return found


def run(encoder: dict) -> dict[str, Any]:
    """A training run: its configuration, whether it is complete, its curves."""
    workdir = Path(encoder["workdir"])
    told: dict[str, Any] = {"family": encoder["family"], "config": encoder["config"]}
    told |= {"leaves": {}, "curves": {}, "commit": ""}
    told["step"] = max(steps_on_disk(workdir), default=0)
    if (workdir / "config.json").exists():
        told["leaves"] = read_leaves(workdir / "config.json")
    saved = workdir / "checkpoints" / str(told["step"]) / "about/metadata"
    if saved.exists():
        told["commit"] = json.loads(saved.read_text())["commit"]
    if (workdir / "metrics.jsonl").exists():
        told["curves"] = curves(workdir / "metrics.jsonl")
    told["complete"] = bool(told["step"]) and told["step"] == told["leaves"].get("steps")
    return told


def curves(path: Path) -> dict[str, list[list[float]]]:
    """{scalar: [[step, value], ...]}, thinned; TensorBoard has all."""
    lines = [json.loads(x) for x in path.read_text().splitlines() if x.endswith("}")]
    lines = lines[:: math.ceil(len(lines) / KEPT) or 1]
    found: dict[str, list[list[float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and not name.startswith("time/"):
                found.setdefault(name, []).append([line["step"], value])
    return found


def varies(name: str, runs: dict[str, dict]) -> dict[str, Any]:
    """What a configuration varies: the run before it in its family that it differs least from.

    Returns:
      base: that run, "" for the first of a family. leaves: {leaf: [there, here]}.
    """
    names = list(runs)
    before = [x for x in names[: names.index(name)] if runs[x]["family"] == runs[name]["family"]]
    found = [(x, differences(runs[x]["leaves"], runs[name]["leaves"])) for x in before]
    base, leaves = min(found, key=lambda x: len(x[1]), default=("", {}))
    return {"base": base, "leaves": leaves}


def differences(theirs: dict, ours: dict) -> dict[str, list]:
    return {
        leaf: [theirs[leaf], value]
        for leaf, value in ours.items()
        if not leaf.startswith(ASIDE) and theirs.get(leaf, value) != value
    }


def title(encoder: dict) -> str:
    """An encoder's name for people."""
    family, _, variant = encoder["name"].partition("-")
    if encoder["kind"] == "random":
        return f"random values ({NAMES.get(variant, variant)})"
    if encoder["kind"] == TRAINED:
        return f"{NAMES.get(family, family)} {variant.replace('_', ' ')}"
    return NAMES.get(encoder["name"], encoder["name"])


def stages_of(name: str, commands: dict[str, list[str]]) -> list[str]:
    """The stages that an encoder's scores come from."""
    return [x for x in commands if x == f"pretrain/{name}" or x.startswith(f"probe/{name}/")]


def described(name: str, held: dict[str, dict]) -> dict[str, Any]:
    """A task, from the first encoder that has it."""
    task = next(found[name] for found in held.values() if name in found)
    return {
        "name": name,
        "title": task["title"].removeprefix("synth_music, "),
        "dataset": task["dataset"],
        "score": SCORES.get(task["score"], task["score"]),
        "chance": task["chance"][task["score"]],
        "items": task["items"],
        "published": [
            {"model": model, "source": source, "value": values[task["score"]]}
            for model, source, values in published.scores(name)
            if task["score"] in values
        ],
    }


def score(task: dict, others: dict[str, dict | None]) -> dict[str, Any]:
    """An encoder's score of a task, by layer and level too, and how it differs from others."""
    name, chosen = task["score"], task["chosen"]
    return {
        "mean": chosen["test"][name]["mean"],
        "sd": chosen["test"][name]["sd"],
        "interval": chosen["interval"],
        "layer": chosen["source"],
        "layers": {x["source"]: x["test"][name]["mean"] for x in task["layers"]},
        "factors": task.get("factors", {}),
    } | {key: difference(task, other) for key, other in others.items()}


def difference(task: dict, other: dict | None) -> dict[str, Any] | None:
    """The paired test against another encoder; None against itself or on other test items.

    mean, interval and p are of one seed of the classifier; of_means is of the means over its seeds.
    likely: p is below LIKELY and both go the same way.
    """
    found = report.against(task, other) if other is not None and other is not task else None
    if found is None:
        return None
    ours, theirs = (x["chosen"]["test"][x["score"]]["mean"] for x in (task, other))
    return {
        "mean": found.mean,
        "interval": [found.low, found.high],
        "p": found.p,
        "of_means": ours - theirs,
        "likely": found.p < LIKELY and found.mean * (ours - theirs) > 0,
    }
