"""The stages of a study, and what they cost."""

import re

import pytest

from configs import music2vec
from launch import study
from musicssl.study import figures, results
from tests.support import fabricated_study
from tests.support.studies import PAPER


def dry_run(capsys: pytest.CaptureFixture, *arguments: str) -> list[tuple[str, str]]:
    """(comment, command) of each stage that --dry_run prints."""
    assert study.main(["--dry_run", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return list(zip(lines[::2], lines[1::2], strict=True))


@pytest.mark.parametrize("scale, datasets", [("demo", 2), ("base", 8)])
def test_a_dry_run_prints_every_stage_in_an_order_that_runs(scale, datasets, tmp_path, capsys):
    printed = dry_run(capsys, f"--scale={scale}", f"--workdir={tmp_path}")
    names = [comment.split(": ")[1] for comment, _ in printed]
    baselines = 2 + len(study.BASELINES)
    models = [f"pretrain/{model.name}" for model in study.MODELS]
    assert [name for name in names if name.startswith("pretrain/")] == models
    assert [x for x in models if x.partition("/")[2] in PAPER] == [f"pretrain/{x}" for x in PAPER]
    assert sum(name.startswith("probe/") for name in names) == (len(models) + baselines) * datasets
    assert names[-1] == "report" and len(set(names)) == len(names)
    for place, (comment, command) in enumerate(printed):
        needs = comment.partition(", needs ")[2]
        assert all(need in names[:place] for need in filter(None, needs.split(", ")))
        assert re.match(r"python -m (musicssl\.\w+|data_pipelines\.build) ", command)
    assert list(tmp_path.iterdir()) == []
    second = next(command for _, command in printed if "k2000_iter2" in command)
    assert f"--config.teacher.encoder={tmp_path}/musichubert-k2000_iter1" in second


def test_homes_are_written_out_in_its_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = ["--workdir=~/w", "--data_dir=~/d", "--manual_dir=~/m", "--encoders=~/a,~/b"]
    options = study.parse(["--scale=demo", *given])
    places = [options.workdir, options.data_dir, options.manual_dir, *options.encoders]
    assert places == [tmp_path / name for name in "wdmab"]
    with pytest.raises(SystemExit):
        study.parse(["--scale=demo", "--workdir=gs://a"])
    assert "gs://a is not a path on this machine" in capsys.readouterr().err


def test_a_dry_run_is_asked_for_in_either_spelling(tmp_path, capsys):
    printed = dry_run(capsys, "--scale=demo", f"--workdir={tmp_path}")
    assert study.main(["--dry-run", "--scale=demo", f"--workdir={tmp_path}"]) == 0
    assert capsys.readouterr().out.splitlines() == [line for stage in printed for line in stage]


def test_models_tasks_and_encoders_are_chosen(tmp_path, capsys):
    given = tmp_path / "hubert-base"
    given.mkdir()
    (given / "config.json").write_text('{"model_type": "hubert"}')
    (given / "preprocessor_config.json").write_text('{"sampling_rate": 16000}')
    printed = dry_run(
        capsys, "--scale=base", "--models=musichubert-k2000_iter2,logmel", "--tasks=gtzan_genre",
        f"--encoders={given}", f"--workdir={tmp_path}", "--", "--config.mesh.fsdp=4",
    )  # fmt: skip
    names = [comment.split(": ")[1] for comment, _ in printed]
    assert names == [
        *("data/music_folder", "data/gtzan"),
        *("pretrain/musichubert-k2000_iter1", "pretrain/musichubert-k2000_iter2"),
        *(f"probe/{x}/gtzan" for x in ("musichubert-k2000_iter2", "logmel", "hubert-base")),
        "report",
    ]
    assert all(("--config.mesh.fsdp=4" in x) == ("musicssl.main" in x) for _, x in printed)
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech/config.json").write_text('{"model_type": "whisper"}')
    wrong = {
        "--models=logmel,music3vec": "--models: 'music3vec' matches nothing",
        "--tasks=gtzan_mood": "gtzan_mood",
        "--stages=report,train/*": "--stages: 'train/*' matches nothing",
        "--encoders=/no/such": "--encoders: /no/such is not there",
        f"--encoders={tmp_path}/speech": "model_type is 'whisper'",
        f"--encoders={given},{given}/": "two are called hubert-base",
    }
    for argument, words in wrong.items():
        assert study.main(["--scale=demo", f"--workdir={tmp_path}", argument]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and words in said
    with pytest.raises(SystemExit):  # after -- it would be no word to this command
        study.main(["--scale=demo", f"--workdir={tmp_path}", "--", "--dry-run"])
    assert "--dry-run: only --config. flags" in capsys.readouterr().err


def test_a_thirteenth_configuration_is_a_variant_and_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(music2vec.VARIANTS, "span40_demo", music2vec.STUDY | {"mask.span": 40})
    monkeypatch.setattr(study, "MODELS", (*study.MODELS, study.Model("music2vec", "span40")))
    printed = dry_run(capsys, "--scale=demo", f"--workdir={tmp_path}")
    assert sum("music2vec.py:span40_demo" in command for _, command in printed) == 1
    assert sum("probes/music2vec-span40/" in command for _, command in printed) == 2
    fabricated_study.fabricate(tmp_path)
    collected = results.collect(tmp_path)
    spans = next(x for x in figures.ablations(collected) if x["leaf"] == "mask.span")
    values = [value for _, value in spans["models"]]
    assert {5, 10, 15, 40} <= set(values) and values == sorted(values)
