"""Checkpoints: exact, on any mesh, kept by policy, and errors that name what is damaged."""

import gc
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from musicssl import paths
from musicssl.runtime import checkpoint, sharding
from musicssl.runtime.checkpoint import Checkpoints
from musicssl.runtime.workdir import steps_on_disk
from musicssl.training.step import TrainState
from tests.support import tiny
from tests.support.saved_states import config, made_state


def abstract(mesh: jax.sharding.Mesh | None = None) -> TrainState:
    """What a restore is asked for: shapes, types and places."""
    mesh = sharding.make_mesh(1, jax.devices()[:1]) if mesh is None else mesh
    shapes = jax.eval_shape(made_state)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        sharding.state_shardings(shapes, mesh),
    )


def same(ours: object, theirs: object) -> bool:
    """To the bit, types and structure too."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    return all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
    )


def restore(workdir: Path, step: int) -> TrainState:
    checkpoints = Checkpoints(workdir, config())
    try:
        return checkpoints.restore(step, abstract())
    finally:
        checkpoints.close()


def test_a_state_comes_back_to_the_bit(saved):
    assert steps_on_disk(saved) == [2, 4]
    for step in (2, 4):
        back = restore(saved, step)
        assert isinstance(back, TrainState) and same(back, made_state(step))
    assert not same(made_state(2), made_state(4))


def test_a_save_does_not_see_the_donated_steps_after_it(tmp_path):
    """The save is still being written while later steps reuse the state's memory."""
    checkpoints = Checkpoints(tmp_path, config())
    state, expected = made_state(2), made_state(2)
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    checkpoints.save(2, state)
    for _ in range(5):
        state = advance(state)
    jax.block_until_ready(state)
    checkpoints.close()
    assert same(restore(tmp_path, 2), expected)


def meshes(workdir: str) -> dict:
    """Save on one mesh of eight devices, restore on others."""
    made = {fsdp: sharding.make_mesh(fsdp) for fsdp in (1, 2, 4)}
    shardings = sharding.state_shardings(jax.eval_shape(made_state), made[2])
    checkpoints = Checkpoints(Path(workdir), config())
    checkpoints.save(2, jax.device_put(made_state(2), shardings))
    checkpoints.close()
    checkpoints = Checkpoints(Path(workdir), config())
    seen = {}
    for fsdp, mesh in made.items():
        state = checkpoints.restore(2, abstract(mesh))
        kernel = state.params["encoder"]["layer_0"]["kernel"]
        pieces = {str(shard.index) for shard in kernel.addressable_shards}
        seen[fsdp] = [same(state, made_state(2)), len(kernel.sharding.device_set), len(pieces)]
    checkpoints.close()
    return seen


def test_a_state_restores_onto_any_mesh(tmp_path):
    seen = tiny.on_eight_devices(meshes, str(tmp_path))
    assert seen == {"1": [True, 8, 1], "2": [True, 8, 2], "4": [True, 8, 4]}
    assert same(restore(tmp_path, 2), made_state(2))  # and here, on one device


def test_saves_are_due_at_the_interval_at_the_end_and_when_forced(tmp_path):
    checkpoints = Checkpoints(tmp_path, config())
    state = made_state()
    began = [step for step in range(12) if checkpoints.save(step, state)]
    assert began == [0, 2, 4, 6, 8, 10, 11]
    assert not checkpoints.save(11, state, force=True)  # it is there
    checkpoints.close()
    # The newest two, and multiples of four for good.
    assert steps_on_disk(tmp_path) == [0, 4, 8, 10, 11]


def test_a_forced_save_between_intervals(saved):
    checkpoints = Checkpoints(saved, config())
    assert not checkpoints.save(5, made_state(5))
    assert checkpoints.save(5, made_state(5), force=True)
    checkpoints.close()
    assert steps_on_disk(saved)[-1] == 5
    assert same(restore(saved, 5), made_state(5))


def test_a_workdir_s_name_is_no_pattern(tmp_path):
    """Others stand beside it that such patterns mean."""
    workdirs = [tmp_path / name for name in ("run[1]", "run1", "a*b?", "a-bc")]
    for seed, workdir in enumerate(workdirs, 1):
        checkpoints = Checkpoints(workdir, config())
        assert checkpoints.save(2, made_state(seed))
        checkpoints.close()
    for seed, workdir in enumerate(workdirs, 1):
        assert same(restore(workdir, 2), made_state(seed))
        params, *_ = checkpoint.load_params(workdir)
        assert same(params, made_state(seed).params)


def test_a_save_that_cannot_be_opened_never_counts(saved, monkeypatch):
    """Orbax merges what processes have written, and merges nothing where it finds nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(paths.Literal, "glob", lambda *_: iter(()))
        keep = {"checkpoint.keep": 1, "checkpoint.keep_every": 99}
        checkpoints = Checkpoints(saved, config(keep))
        assert checkpoints.save(6, made_state(6))
        with pytest.raises(OSError, match=r"could not be written .*run the same") as error:
            checkpoints.save(8, made_state(8))
        checkpoints.close()
    assert "\n" not in str(error.value) and "manifest.ocdbt is missing" in str(error.value)
    assert steps_on_disk(saved) == [2, 4]  # though one alone is to be kept
    assert same(restore(saved, 4), made_state(4))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("at_close", [False, True])
def test_a_save_that_is_lost_after_its_commit_ends_the_run(saved, at_close):
    checkpoints = Checkpoints(saved, config())
    assert checkpoints.save(6, made_state(6))
    checkpoints.manager.wait_until_finished()
    (saved / "checkpoints/6/state/manifest.ocdbt").unlink()
    with pytest.raises(OSError, match=r"could not be written .*Those before it are intact"):
        if at_close:
            checkpoints.close()
        else:
            checkpoints.save(8, made_state(8))
    checkpoints.close()
    gc.collect()
    assert steps_on_disk(saved)[-1] == 6


def test_a_save_without_an_array_is_told_by_the_array_s_name(saved):
    checkpoints = Checkpoints(saved, config())
    assert checkpoints.save(6, made_state(6))
    checkpoints.shapes.params["head"]["bias"] = jax.ShapeDtypeStruct((4,), np.float32)
    with pytest.raises(OSError, match=r"params\.head\.bias is none there and float32\[4\] here"):
        checkpoints.close()


def test_a_run_says_what_has_changed_since_a_save(saved):
    checkpoints = Checkpoints(saved, config())
    assert checkpoints.changes(4) == ""
    checkpoints.about["commit"] = "later"
    checkpoints.about["environment"] |= {"jax": "9.9", "XLA_FLAGS": ""}
    changes = checkpoints.changes(4)
    assert f"jax ({jax.__version__} then, 9.9 now)" in changes and " then, later now)" in changes
    assert re.search(r"XLA_FLAGS \(.+ then, none now\)", changes)
    about = saved / "checkpoints/4/about/metadata"  # as older versions wrote it
    old = json.loads(about.read_text())
    del old["environment"]
    about.write_text(json.dumps(old))
    assert re.fullmatch(r"commit \(.* then, later now\)", checkpoints.changes(4))
    checkpoints.close()


def test_what_a_killed_save_leaves_is_not_a_checkpoint(saved):
    folder = saved / "checkpoints"
    shutil.copytree(folder / "4", folder / "6.orbax-checkpoint-tmp-1")
    (folder / "8").write_text("a file")
    assert steps_on_disk(saved) == [2, 4]
    (folder / "8").unlink()
    checkpoints = Checkpoints(saved, config())
    assert checkpoints.latest() == 4
    assert checkpoints.save(6, made_state(6))
    checkpoints.close()
    assert same(restore(saved, 6), made_state(6))


def test_nothing_is_on_disk_before_the_first_save(tmp_path):
    assert steps_on_disk(tmp_path / "absent") == []
    checkpoints = Checkpoints(tmp_path, config())
    assert checkpoints.latest() is None
    checkpoints.close()


def values_file(step: Path) -> Path:
    """The largest file of a checkpoint: it holds arrays."""
    return max(
        (x for x in (step / "state").rglob("*") if x.is_file()), key=lambda x: x.stat().st_size
    )


def cut_arrays(step: Path) -> str:
    path = values_file(step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path.name


def flip_a_bit(step: Path) -> str:
    path = values_file(step)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


def lose_arrays(step: Path) -> str:
    values_file(step).unlink()
    return "cannot be read: No such file"


def change_metadata(step: Path) -> str:
    (step / "state" / "_METADATA").write_text("{")
    return "state/_METADATA is not what was saved"


def change_about(step: Path) -> str:
    path = step / "about" / "metadata"
    path.write_text(path.read_text().replace('"batch_size": ', '"batch_size": 1'))
    return "about/metadata is not what was saved"


def lose_state(step: Path) -> str:
    shutil.rmtree(step / "state")
    return "state/digests.json is missing"


DAMAGE = [cut_arrays, flip_a_bit, lose_arrays, change_metadata, change_about, lose_state]


@pytest.mark.parametrize("harm", DAMAGE)
@pytest.mark.filterwarnings("error")
def test_a_damaged_checkpoint_is_named_and_the_others_stay(saved, harm):
    found = harm(saved / "checkpoints" / "4")
    with pytest.raises(ValueError, match=r"checkpoints/4 cannot be restored .*--workdir") as error:
        restore(saved, 4)
    assert str(saved) in str(error.value) and "\n" not in str(error.value)
    assert found in str(error.value)
    with pytest.raises(
        ValueError, match=r"checkpoints/4 cannot be read .*use another step"
    ) as error:
        checkpoint.load_params(saved)
    assert found in str(error.value)
    gc.collect()  # reads left behind by a failed restore would warn now
    assert same(restore(saved, 2), made_state(2))
    assert steps_on_disk(saved) == [2, 4]


def test_a_damaged_newest_checkpoint_is_passed_over_only_when_asked(saved, capsys):
    checkpoints = Checkpoints(saved, config())
    assert checkpoints.save(6, made_state(6))
    checkpoints.close()
    flip_a_bit(saved / "checkpoints" / "6")
    checkpoints = Checkpoints(saved, config())
    with pytest.raises(ValueError, match=r"checkpoints/6 .*on_damage=older goes on from step 4"):
        checkpoints.latest()
    checkpoints.close()
    assert steps_on_disk(saved) == [4, 6]
    checkpoints = Checkpoints(saved, config({"checkpoint.on_damage": "older"}))
    assert checkpoints.latest() == 4
    assert "step 6 is damaged" in capsys.readouterr().out
    assert same(checkpoints.restore(4, abstract()), made_state(4))
    assert checkpoints.save(6, made_state(6))  # its place is free again
    checkpoints.close()
    assert [path.name.split("-")[0] for path in (saved / "damaged").iterdir()] == ["6"]
    assert same(restore(saved, 6), made_state(6))


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_from_scratch(saved):
    for step in (2, 4):
        flip_a_bit(saved / "checkpoints" / str(step))
    checkpoints = Checkpoints(saved, config({"checkpoint.on_damage": "older"}))
    with pytest.raises(ValueError, match=r"checkpoints/4 cannot be restored .*put this one back"):
        checkpoints.latest()
    checkpoints.close()
    assert steps_on_disk(saved) == [2, 4]


@pytest.mark.filterwarnings("error")
def test_a_checkpoint_of_another_shape_is_refused(saved):
    wanted = abstract()
    kernel = wanted.params["head"]["kernel"]
    wanted.params["head"]["kernel"] = kernel.update(shape=(3, 5))
    checkpoints = Checkpoints(saved, config())
    difference = r"params\.head\.kernel is float32\[3, 4\] there and float32\[3, 5\] here"
    with pytest.raises(ValueError, match=rf"checkpoints/4 cannot be restored \({difference}"):
        checkpoints.restore(4, wanted)
    del wanted.params["head"]["kernel"]
    with pytest.raises(ValueError, match=r"head\.kernel is float32\[3, 4\] there and none here"):
        checkpoints.restore(4, wanted)
    checkpoints.close()
    gc.collect()


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    checkpoints = Checkpoints(tmp_path, config(), {"records": 5, "samples": 90})
    checkpoints.save(2, made_state(2))
    checkpoints.close()
    for counts in ({"records": 6, "samples": 90}, {"records": 6}):
        checkpoints = Checkpoints(tmp_path, config(), counts)
        with pytest.raises(
            ValueError, match=r"the data set has changed: 5 records then, 6 now\).*put that"
        ):
            checkpoints.restore(2, abstract())
        checkpoints.close()
    checkpoints = Checkpoints(tmp_path, config(), {"records": 5})
    assert same(checkpoints.restore(2, abstract()), made_state(2))
    checkpoints.close()


def test_a_full_disk_is_told_before_the_save(saved, monkeypatch):
    usage = shutil.disk_usage(saved)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    checkpoints = Checkpoints(saved, config())
    with pytest.raises(OSError, match=r"checkpoints has 0\.00 GB free .*free some space"):
        checkpoints.save(6, made_state(6))
    checkpoints.close()
    assert steps_on_disk(saved) == [2, 4]


@pytest.mark.filterwarnings("error")
def test_load_params(saved, capfd):
    for step, found in ((None, 4), (2, 2)):
        params, teacher, loaded, at = checkpoint.load_params(saved, step)
        assert at == found
        assert same(params, made_state(found).params) and same(teacher, made_state(found).teacher)
        assert all(type(x) is np.ndarray for x in jax.tree.leaves((params, teacher)))
        assert loaded.to_json() == config().to_json() and loaded.is_locked
    gc.collect()
    assert capfd.readouterr().err == ""  # Orbax has nothing to warn of


def test_load_params_of_a_run_without_a_teacher(tmp_path):
    checkpoints = Checkpoints(tmp_path, config())
    checkpoints.save(2, made_state()._replace(teacher={}))
    checkpoints.close()
    params, teacher, _, _ = checkpoint.load_params(tmp_path)
    assert teacher == {} and same(params, made_state().params)


def test_load_params_names_what_is_missing(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent holds no checkpoint.*--workdir"):
        checkpoint.load_params(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"has no checkpoint of step 3: it has \[2, 4\]"):
        checkpoint.load_params(saved, 3)


def test_each_checkpoint_says_what_made_it(saved):
    about = json.loads((saved / "checkpoints/4/about/metadata").read_text())
    assert about["step"] == 4
    assert (about["processes"], about["devices"]) == (1, jax.device_count())
    assert re.fullmatch(r"([0-9a-f]{40}(-dirty)?)?", about["commit"])  # "" outside git
    assert about["config"] == json.loads(config().to_json())
    assert json.loads((saved / "config.json").read_text()) == about["config"]
