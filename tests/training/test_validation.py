"""Looks at the validation split: what they measure, and that they change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import musichubert
from musicssl.model.encoder import make_encoder
from musicssl.objectives import random_projection, targets
from musicssl.runtime import checkpoint, sharding
from musicssl.runtime.workdir import best_step, step_of, steps_on_disk
from musicssl.training import loop, validation
from musicssl.training import step as step_lib
from tests.support import runs, sessions
from tests.support.sessions import Session, config, copies_config

STEPS = sessions.STEPS
EVERY = {"validate.every": 5, "validate.clips": 6}


def several_targets():
    """musicHuBERT with two targets that need no fitting, as small as the others."""
    leaves = {k: v for k, v in sessions.LEAVES.items() if not k.startswith(("data2vec", "encoder"))}
    leaves |= {
        k: v for k, v in sessions.LEAVES.items() if k.startswith("encoder.") and "pos" not in k
    }
    leaves |= {"data.crop_frames": 37, "hubert.final_dim": 8, "teacher.projection": 4}
    leaves |= {"encoder.pos_conv_kernel": 16, "encoder.pos_conv_groups": 4}
    leaves |= {"teacher.targets": "mel:random:6,chroma:random:5", "teacher.feature": ""}
    tiny = musichubert.get_config("demo_multi")
    tiny.update_from_flattened_dict(leaves | {"teacher.weights": ()})
    return tiny


def quantizers(tiny) -> dict:
    """Random projections and codes of each target, on features as they are."""
    found = {}
    for target in targets.of(tiny):
        width = 80 if target.feature == "mel" else 12
        settings = random_projection.Settings(target.name, target.clusters, seed=0, dimensions=4)
        projection, rows = random_projection.draw(settings, width)
        found[target.name] = {
            "projection": jnp.asarray(projection),
            "codebook": jnp.asarray(rows),
            "mean": jnp.zeros(width),
            "deviation": jnp.ones(width),
        }
    return found


def looker(tiny, number: int = 2):
    """A look at so many batches, the state before the first step, and what is frozen."""
    session = Session(tiny, None)
    batches = session.open_validation()
    state = step_lib.sharded_init(tiny, session.mesh)
    look = validation.make(tiny, session.mesh, [next(batches) for _ in range(number)])
    return look, state, session


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """A whole run that looks at its validation split, and its session."""
    session = Session(config(EVERY), tmp_path_factory.mktemp("validated"))
    assert session.run()
    return session


@pytest.mark.slow
def test_a_look_is_the_loss_without_dropout_over_all_batches_together():
    """Against the objective's own loss of one batch that holds both, masks as they were drawn."""
    tiny = config({"mask.equal_counts": 0})
    look, state, session = looker(tiny)
    found = look(state, {})
    still = config(
        {"mask.equal_counts": 0}
        | {
            f"encoder.{name}": 0.0
            for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop")
        }
    )
    batches = session.open_validation()
    parts = []
    for number in range(2):
        keys = validation._keys(tiny, number)
        parts.append(step_lib.prepare(still, keys["mask"], next(batches)))
    both = jax.tree.map(
        lambda *x: np.concatenate([np.asarray(y) for y in x]), *[p[:3] for p in parts]
    )
    whole = parts[0]._replace(
        encoder_input=both[0], waveform=both[1], mask=both[2],
        masked=parts[0].masked + parts[1].masked, clips=8,
    )  # fmt: skip
    method, encoder = step_lib.objective(still), make_encoder(still)
    rngs = {name: jax.random.key(3) for name in ("dropout", "layerdrop")}
    loss, sums = jax.jit(
        lambda batch: method.loss(encoder, still, state.params, state.teacher, batch, rngs)
    )(whole)
    health = method.health(still, sums, whole.masked, state.updates)
    assert found["validation/loss"] == pytest.approx(float(loss), rel=1e-5)
    for name in ("target_std", "prediction_std"):
        assert found[f"validation/{name}"] == pytest.approx(float(health[name]), rel=1e-4)
    assert "validation/ema_decay" not in found


@pytest.fixture(scope="module")
def plain():
    """A look at two batches of music2vec, the state, and the session."""
    return looker(config())


def test_deviation_and_effective_rank_are_those_of_all_frames_together(plain):
    tiny = config()
    look, state, session = plain
    found = look(state, {})
    batches, encoder = session.open_validation(), make_encoder(tiny)
    clips = np.concatenate([np.asarray(next(batches)) for _ in range(2)])
    prepared = step_lib.prepare(tiny, jax.random.key(0), clips)
    student = {"params": state.params["encoder"]}
    stem = jax.jit(lambda x: encoder.apply(student, x, method="stem"))(prepared.encoder_input)
    hidden = jax.jit(lambda x: encoder.apply(student, x).hidden)(prepared.encoder_input)
    for name, x in {"stem": stem, "layer_0": hidden[0], "layer_1": hidden[1]}.items():
        rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
        rows = rows - rows.mean(0)
        singular = np.linalg.svd(rows, compute_uv=False)
        share = singular / singular.sum()
        rank = np.exp(-(share * np.log(share + 1e-300)).sum())
        assert found[f"health/{name}_std"] == pytest.approx(rows.std(0).mean(), rel=1e-4)
        assert found[f"health/{name}_rank"] == pytest.approx(rank, rel=1e-2)


def test_frames_of_known_directions():
    random = np.random.default_rng(0)
    for directions in (1, 3):
        x = random.standard_normal((1, 5000, directions)) @ np.eye(directions, 8) * 2 + 7
        deviation, rank = validation.measures(validation._joined(None, validation._spread(x)))
        assert rank == pytest.approx(directions, rel=0.03)
        assert deviation == pytest.approx(2 * directions / 8, rel=0.03)
    still = validation._joined(None, validation._spread(np.full((1, 50, 8), 3.0)))
    assert validation.measures(still) == (0.0, 0.0)


def test_a_stem_that_collapses_is_told_apart_from_a_head_that_does(plain):
    look, state, _ = plain
    well = look(state, {})
    silenced = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if "stem_norm_6" in str(path) else x, state.params["encoder"]
    )
    of_stem = look(state._replace(params=state.params | {"encoder": silenced}), {})
    head = jax.tree.map(lambda x: x * 0, state.params["head"])
    of_head = look(state._replace(params=state.params | {"head": head}), {})
    assert of_stem["health/stem_std"] < 1e-6 < 1e-2 < well["health/stem_std"]
    assert of_head["health/stem_std"] == well["health/stem_std"]
    assert of_head["validation/prediction_std"] < 0.01 < well["validation/prediction_std"]


@pytest.mark.parametrize("make_config", [copies_config, several_targets])
def test_every_objective_is_looked_at_and_the_same_state_gives_the_same_values(make_config):
    tiny = make_config()
    look, state, _ = looker(tiny)
    frozen = {}
    if tiny.method == "hubert":
        frozen = {"quantizers": quantizers(tiny)}
    first = look(state, frozen)
    later = look(state._replace(step=state.step + 7, updates=state.updates + 7), frozen)
    assert first == later and all(np.isfinite(list(first.values())))
    if tiny.method == "hubert":
        assert {"validation/masked_accuracy/mel", "validation/code_usage/chroma"} <= first.keys()
        assert validation.scores(tiny) == [
            "loss", "cross_entropy", "masked_accuracy/mel", "masked_accuracy/chroma",
        ]  # fmt: skip
    else:
        assert {"validation/loss", "validation/target_std"} <= first.keys()


@pytest.mark.slow
def test_looks_change_no_bit_of_training(validated, tmp_path):
    without = Session(config(), tmp_path)
    assert without.run()
    assert runs.differences(runs.state(validated.workdir), runs.state(tmp_path)) == []
    looked = [(step, x) for step, x in validated.rows if "validation/loss" in x]
    assert [step for step, _ in looked] == [5, 10, STEPS]
    assert not any("validation/loss" in x for _, x in without.rows)


def test_the_best_step_is_kept_beside_the_newest(validated):
    losses = {s: x["validation/loss"] for s, x in validated.rows if "validation/loss" in x}
    best = min(losses, key=losses.get)
    kept = steps_on_disk(validated.workdir)
    assert best in kept and STEPS in kept
    assert checkpoint.load_params(validated.workdir, best)[3] == best


@pytest.mark.slow
def test_a_resumed_run_looks_at_the_same(validated, tmp_path):
    again = Session(config(EVERY), tmp_path)
    again.preemption = _StopAt(7)
    assert not again.run()
    resumed = Session(config(EVERY), tmp_path)
    assert resumed.run()
    ours = {s: x for s, x in [*again.rows, *resumed.rows] if "validation/loss" in x}
    theirs = {s: x for s, x in validated.rows if "validation/loss" in x}
    assert ours == theirs


class _StopAt:
    """Somebody who asks a run to end at a step."""

    def __init__(self, step: int):
        self.step = step

    def reached(self, step: int) -> bool:
        return step == self.step

    def poll(self) -> None:
        pass


def test_what_a_command_may_name_a_step(tmp_path):
    for step in (5, 10, 14):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    lines = [(4, 0.1), (5, 3.0), (10, 2.0), (14, 2.5)]
    text = "".join(f'{{"step": {s}, "validation/loss": {x}}}\n' for s, x in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 14, "loss": 0.0}\n')
    assert best_step(tmp_path, "loss") == (10, 2.0)  # step 4 is not kept
    assert [step_of(tmp_path, text) for text in ("", "5", "best")] == [None, 5, 10]
    with pytest.raises(ValueError, match="step is 'first': use a number, best, or nothing"):
        step_of(tmp_path, "first")
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="has no best step: none of its saved steps was validated"):
        step_of(tmp_path, "best")


@pytest.mark.parametrize(
    "leaves, message",
    [
        ({"validate.every": -1}, "validate.every is -1"),
        ({"validate.clips": 0}, "validate.clips is 0"),
        ({"validate.score": "accuracy"}, "validate.score is 'accuracy': use one of loss"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(leaves, message):
    with pytest.raises(ValueError, match=message):
        loop.check(config(leaves), sharding.make_mesh(devices=jax.devices()[:1]))
