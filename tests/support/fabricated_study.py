"""The folder of a study whose numbers are made up: runs, probes, records, none of them run."""

import json
from pathlib import Path

import numpy as np

from configs import music2vec, musichubert
from launch import stage_records, stages, study
from musicssl.probing import tasks
from musicssl.probing.task_kinds import kind_of

LAYERS = ("0", "1", "2", "3", "4", "sum")
ITEMS = 300


def fabricate(folder: Path, wanted: str = "*", scale: str = "demo") -> study.Study:
    """Writes everything that a complete study leaves, and returns the study."""
    arguments = [f"--scale={scale}", f"--models={wanted}", f"--workdir={folder}"]
    made = study.Study(study.parse([*arguments, f"--data_dir={folder}/data"]))
    made.save()
    for number, encoder in enumerate(made.encoders):
        if encoder.kind == "pre-trained":
            run(made, encoder.model, number)
        for dataset in made.datasets:
            results = made.results(encoder, dataset)
            results.mkdir(parents=True)
            found = {
                task.name: result(task, number, encoder.kind == "features")
                for task in made.tasks
                if task.dataset == dataset
            }
            (results / "results.json").write_text(json.dumps({"tasks": found}))
            (results / "results.md").write_text("")
    for stage in made.stages()[:-1]:
        note(folder, stage)
    return made


def note(folder: Path, stage: stages.Stage) -> None:
    path = stage_records.path_of(folder, stage.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"stage": stage.name, "command": list(stage.command), "commit": "0123456789abcdef"}
    told |= {"began": "2026-01-02T03:04:05Z", "seconds": 61.5, "cpu_seconds": 90.0}
    told |= {"earlier_commits": []}
    path.write_text(json.dumps(told))


def run(made: study.Study, model: study.Model, seed: int) -> None:
    """A workdir with a configuration, curves and the sign of a last checkpoint."""
    family = {"music2vec": music2vec, "musichubert": musichubert}[model.family]
    config = family.get_config(model.variant + made.scale.suffix)
    workdir = made.place(model)
    last = workdir / "checkpoints" / str(config.steps) / "about"
    last.mkdir(parents=True)
    (last / "metadata").write_text(json.dumps({"commit": "fedcba9876543210"}))
    (workdir / "config.json").write_text(config.to_json())
    random = np.random.default_rng(seed)
    with (workdir / "metrics.jsonl").open("w") as file:
        for step in range(config.steps // 50, config.steps + 1, config.steps // 50):
            falling = float(np.exp(-4 * step / config.steps) + 0.05 * random.random())
            line = {"step": step, "loss": 1 + 3 * falling, "grad_norm": falling}
            line |= {"target_std": 0.7 + 0.1 * falling, "prediction_std": 0.6, "majority": 0.1}
            line |= {"masked_accuracy": 0.5 - 0.4 * falling, "label_perplexity": 20.0}
            line |= {"audio_hours": step / 100, "time/goodput": 0.9}
            file.write(json.dumps(line) + "\n")


def result(task: tasks.Task, seed: int, single: bool) -> dict:
    """A task's results in the evaluator's form; draws of all encoders share their noise."""
    kind = kind_of(task)
    number = sum(map(ord, task.name))
    random = np.random.default_rng([seed, number])
    shared = np.random.default_rng(number).standard_normal(400) * 0.03
    names = LAYERS[:1] if single else LAYERS
    means = {
        name: float(x) for name, x in zip(names, random.uniform(0.3, 0.8, len(names)), strict=True)
    }
    best = max(means, key=means.get)
    own = 0.02 * random.standard_normal(3)  # of each probe seed
    draws = means[best] + own[:, None] + shared + 0.02 * random.standard_normal((3, 400))
    seeds = draws.mean(1)
    means[best] = float(seeds.mean())
    layers = [
        {"source": x, "test": {s: {"mean": y, "sd": 0.01} for s in kind.score_names}}
        for x, y in means.items()
    ]
    return {
        "task": task.name,
        "title": task.title,
        "dataset": task.dataset,
        "score": kind.main_score,
        "chosen": {
            "source": best,
            "test": next(x["test"] for x in layers if x["source"] == best),
            "test_seeds": seeds.tolist(),
            "interval": list(np.percentile(draws, [2.5, 97.5])),
            "draws": draws.tolist(),
        },
        "test_items": f"items of {task.name}",
        "layers": layers,
        "chance": dict.fromkeys(kind.score_names, 0.25),
        "items": {"train": 900, "validation": 300, "test": ITEMS},
        "factors": {factor: levels(means, random) for factor in task.factors},
    }


def levels(means: dict[str, float], random: np.random.Generator) -> list[dict]:
    """Scores that fall with the number of voices, each layer's in its own way."""
    return [
        {
            "level": str(level),
            "items": 50,
            "chance": 0.25,
            "sources": {
                name: {
                    "mean": mean / level**0.4,
                    "interval": [mean / level - 0.05, mean / level + 0.05],
                }
                for name, mean in means.items()
            },
        }
        for level in range(1, 7)
    ]
