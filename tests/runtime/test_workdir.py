"""Whose run a workdir is, and what may change in it."""

import json

import pytest

from configs import musichubert
from musicssl.runtime import workdir
from musicssl.runtime.workdir import claim, flat, metrics, require_writable
from tests.support.saved_states import config


def test_claim_refuses_another_run_and_names_each_difference(saved):
    before = (saved / "config.json").read_text()
    other = config({"optim.learning_rate": 0.5, "mask.span": 5, "log_every": 3})
    with pytest.raises(ValueError) as error:
        claim(saved, other)
    message = str(error.value)
    assert "mask.span (10 there, 5 here)" in message and "\n" not in message
    assert "optim.learning_rate (0.001 there, 0.5 here)" in message
    assert "log_every" not in message and "--workdir" in message
    assert (saved / "config.json").read_text() == before


def test_claim_takes_what_may_change(saved):
    changes = {
        "log_every": 3,
        "nonfinite": "skip",
        "checkpoint.every": 3,
        "mesh.fsdp": 2,
        "data.data_dir": "elsewhere",
        "data.on_damage": "skip",
        "data.mirror": "/dev/shm/data",
        "profile": "3:5",
        "tracker": "wandb",
        "data2vec.guard_after": 7,
        "data2vec.min_target_std": 0.05,
    }
    other = config(changes)
    claim(saved, other)
    assert json.loads((saved / "config.json").read_text()) == json.loads(other.to_json())


@pytest.mark.parametrize("leaf", ["steps", "seed", "batch_size", "accumulate", "data.crop_frames"])
def test_claim_refuses_a_change_of_what_is_computed(saved, leaf):
    value = flat(config().to_dict())[leaf]
    with pytest.raises(ValueError, match=leaf.replace(".", r"\.")):
        claim(saved, config({leaf: value * 2}))


def test_claim_holds_the_order_of_the_data(saved):
    with pytest.raises(ValueError, match=r"data\.order \('shuffled' there, 'blocks' here\)"):
        claim(saved, config({"data.order": "blocks"}))
    older = json.loads((saved / "config.json").read_text())
    del older["data"]["order"], older["data"]["mirror"]  # as before there were such leaves
    (saved / "config.json").write_text(json.dumps(older))
    with pytest.raises(ValueError, match=r"data\.order \('shuffled' there, 'blocks' here\)"):
        claim(saved, config({"data.order": "blocks"}))
    claim(saved, config())


def test_claim_refuses_checkpoints_without_a_readable_config(saved):
    for content in (b"{", b"", b"\xff\xfe", b"[1]"):
        (saved / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json cannot be read"):
            claim(saved, config())
    (saved / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        claim(saved, config())


def test_claim_goes_on_with_a_run_that_knew_of_one_target_alone(tmp_path):
    """Its config.json has none of the leaves that came with several."""
    config = musichubert.get_config("demo")
    (tmp_path / "checkpoints/4").mkdir(parents=True)
    old = json.loads(config.to_json())
    for leaf in ("targets", "weights", "projection"):
        del old["teacher"][leaf]
    (tmp_path / "config.json").write_text(json.dumps(old))
    claim(tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps(old))
    config.teacher.update({"feature": "", "targets": "mfcc,onset"})
    with pytest.raises(ValueError, match=r"teacher\.targets \('' there, 'mfcc,onset' here\)"):
        claim(tmp_path, config)


def test_claim_does_not_overwrite_a_foreign_config(tmp_path):
    foreign = tmp_path / "config.json"
    foreign.write_text('{"model_type": "hubert"}')
    with pytest.raises(ValueError, match=r"config\.json belongs to no run"):
        claim(tmp_path, config())
    assert foreign.read_text() == '{"model_type": "hubert"}'


def test_claim_of_a_run_without_checkpoints_starts_anew(tmp_path):
    claim(tmp_path / "a" / "b", config())
    claim(tmp_path / "a" / "b", config({"seed": 9}))
    assert json.loads((tmp_path / "a" / "b" / "config.json").read_text())["seed"] == 9
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["config.json"]


def test_lines_of_metrics_that_cannot_be_read_are_told_from_others(tmp_path):
    good = [b'{"step": 1, "loss": 2.5}\n', b'{"step": 2, "loss": NaN}\n']
    bad = [b"\0\0\0\n", b"\xff\xfe\n", b"# mine\n", b"[1]\n", b'{"loss": 1.0}\n', b"\n"]
    bad += [b'{"step": 2, "note": "mine"}\n', b'{"step": 3, "lo']
    (tmp_path / "metrics.jsonl").write_bytes(b"".join([good[0], *bad[:3], good[1], *bad[3:]]))
    lines = metrics(tmp_path)
    assert [line for line, scalars in lines if scalars] == good
    assert [line for line, scalars in lines if scalars is None] == bad
    assert metrics(tmp_path / "absent") == []


def test_a_workdir_that_cannot_be_written_to_is_told(tmp_path):
    require_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match=r"absent cannot be written to \(No such file .*--workdir"):
        require_writable(tmp_path / "absent")


def test_where_there_is_no_git_the_commit_is_an_image_s(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "__file__", str(tmp_path / "workdir.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert workdir.git_commit() == ""
    monkeypatch.setenv("MUSICSSL_COMMIT", "0123abc")
    assert workdir.git_commit() == "0123abc"


def test_flat_spells_leaves_as_flags_do():
    assert flat({"a": 1, "b": {"c": [2], "d": {"e": 3}}}) == {
        "a": 1,
        "b.c": [2],
        "b.d.e": 3,
    }
