"""The page of a recipe's runs, from what runs leave behind."""

import json
import re
from pathlib import Path

from PIL import Image

from launch import record
from tests.probing.test_report import task, written

CONFIG = {"name": "musichubert", "variant": "small", "steps": 20, "encoder": {"layers": 4}}


def _run(folder: Path, seed: int, **leaves: object) -> Path:
    """Write what a complete run leaves, its probes and its questions about several voices."""
    folder.mkdir()
    config = CONFIG | {"seed": seed, "data": {"data_dir": str(folder)}} | leaves
    (folder / "config.json").write_text(json.dumps(config))
    lives = [{"began": 0.0, "ended": 90.0}, {"began": 200.0, "ended": 290.0}]
    (folder / "goodput.json").write_text(json.dumps(lives))
    lines = [{"step": 10, "validation/loss": 3.0}, {"step": 20, "validation/loss": 2.5 + seed}]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    Image.new("RGB", (1, seed)).save(folder / "curves.png")
    trained = {"step": 20, "config": {"seed": seed, "steps": 20}}
    about = {"encoder": str(folder), "run": trained, "commit": "c0ffee", "jax": "0.10.2"}
    for name, of in (("probe", "synth_key"), ("polyphony", "poly_pitch")):
        written(folder / name, task(of), **about)
        for baseline in ("logmel", "random"):
            written(
                folder / name / "beside" / baseline,
                task(of),
                **about | {"run": None, "encoder": baseline},
            )
    return folder


def test_a_page_has_all_seeds_in_one_column_beside_the_baselines(tmp_path):
    runs = [_run(tmp_path / f"small-{seed}", seed) for seed in (1, 2)]
    written(tmp_path / "mfcc", task("synth_key"), encoder="mfcc")
    options = [f"--output={tmp_path / 'kept'}", "--machine=a Cray", "--beside"]
    assert record.main([*map(str, runs), *options, str(tmp_path / "mfcc")]) == 0
    page = (tmp_path / "kept/README.md").read_text()
    assert "Commit c0ffee, jax 0.10.2, a Cray." in page
    assert "| 1 | 20 | 3.0 | 3.500 |" in page and "| 2 | 20 | 3.0 | 4.500 |" in page
    assert "(training seeds 1, 2) | random | logmel | mfcc | chance |" in page
    assert "(training seeds 1, 2) | random | logmel | chance |" in page
    assert "## Probes" in page and "## Several voices" in page
    command = "python -m musicssl.main --config=configs/musichubert.py:small --config.seed=2"
    assert f"{command} --workdir=runs/small-2\n" in page
    with Image.open(tmp_path / "kept/curves-2.png") as picture:
        assert picture.size == (1, 2) and picture.mode == "P"
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    assert kept == {
        *("README.md", "config.json", "curves-1.png", "curves-2.png"),
        *("probe.png", "polyphony.png"),
    }
    for name in kept - {"README.md"}:
        assert f"({name})" in page


def test_what_is_not_there_or_of_another_recipe_is_one_line(tmp_path, capsys):
    run, other = _run(tmp_path / "a", 1), _run(tmp_path / "b", 2, steps=30)
    out = f"--output={tmp_path / 'kept'}"
    assert record.main([str(run), str(other), out]) == 2
    apart = f"record: {other} and {run} differ in steps: give runs of one recipe\n"
    assert capsys.readouterr().err == apart
    for address in ("gs://abc/x", "s3://abc/x"):
        for given in ([address, out], [str(run), f"--output={address}"]):
            assert record.main(given) == 2
            error = capsys.readouterr().err
            assert f"record: {address} is not a path on this" in error and error.count("\n") == 1
    (run / "curves.png").unlink()
    for wrong, said in ((run, "the run is not complete"), (tmp_path, "give the workdirs of runs")):
        assert record.main([str(wrong), out]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_the_machine_is_told_in_words():
    assert re.fullmatch(r"\d+ cores of .+", record.machine())
