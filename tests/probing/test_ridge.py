"""Ridge regression in closed form, against scikit-learn."""

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.linear_model
import sklearn.preprocessing

from musicssl.features import windows
from musicssl.features.rows import Stored
from musicssl.probing import evaluate, labels, metrics, ridge, tasks
from tests.support.probes import config, nothing

PENALTIES = (10.0, 0.1, 1e-3, 1e-5)


def features(seed: int, rows: int, layers: int = 2, width: int = 24) -> np.ndarray:
    """Layers whose columns are mixed, shifted and of unlike spread; one column is constant."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((layers, width, width))
    x = random.standard_normal((layers, rows, width)) @ mixing * np.geomspace(0.01, 5, width) + 3
    x[:, :, 5] = 0.25
    return x.astype(np.float16)


def part(seed: int, rows: int, log_odds: bool = False) -> ridge.Part:
    """Classes that the features tell a little of; every second row is of the same item."""
    x = features(seed, rows)
    random = np.random.default_rng([seed, 1])
    y = (x[1, :, -4:].astype(float) + 20 * random.standard_normal((rows, 4))).argmax(1)
    if log_odds:
        y = (y[:, None] == 0).astype(np.float32)
        return ridge.Part(Stored(tuple(x), np.arange(rows)), y, np.arange(rows), y)
    item = np.arange(rows) // 2
    y = y[item * 2]
    return ridge.Part(Stored(tuple(x), np.arange(rows)), y, item, y[::2])


def plain(stored: Stored, layers: list[int]) -> np.ndarray:
    return np.concatenate([stored.layers[i][stored.rows] for i in layers], 1).astype(float)


def test_moments_are_those_of_all_blocks_together() -> None:
    x = features(0, ridge._BLOCK + 700)
    rows = np.random.default_rng(1).permutation(ridge._BLOCK + 700)[: ridge._BLOCK + 300]
    y = np.random.default_rng(2).random((len(rows), 3)).astype(np.float32)
    seen = ridge.moments(Stored(tuple(x), rows), y)
    flat = np.concatenate(list(x[:, rows].astype(float)), 1)
    both = np.cov(np.concatenate([flat, y], 1).T, bias=True)
    scale = flat.std(0).max()
    np.testing.assert_allclose(seen.mean, flat.mean(0), atol=1e-12 * scale)
    np.testing.assert_allclose(seen.covariance, both[:48, :48], atol=1e-12 * scale**2)
    np.testing.assert_allclose(seen.cross, both[:48, 48:], atol=1e-12 * scale)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_weights_are_those_of_scikit_learn(penalty: float) -> None:
    train = part(0, 600)
    targets = np.eye(4)[train.y]
    seen = ridge.moments(train.x, targets.astype(np.float32))
    columns = np.arange(24, 48)
    fit = ridge.solve(seen, columns, [penalty])
    x = plain(train.x, [1])
    scaler = sklearn.preprocessing.StandardScaler().fit(x)
    wanted = sklearn.linear_model.Ridge(alpha=penalty * len(x)).fit(scaler.transform(x), targets)
    ours = (x - seen.mean[columns]) @ fit.weights[:, 0] + fit.bias
    np.testing.assert_allclose(ours, wanted.predict(scaler.transform(x)), atol=1e-8)
    assert (fit.weights[5] == 0).all()  # of the constant column


def test_answers_and_choices_are_those_of_scikit_learn() -> None:
    """The whole search, done again with scikit-learn, in float64, item by item."""
    parts = part(0, 500), part(1, 300), part(2, 300)
    sources = {"0": [0], "1": [1], "concat": [0, 1]}
    found = ridge.search(
        parts, 4, metrics.monitor_accuracy, sources, PENALTIES, False, "a task", nothing
    )
    assert [outcome.source for outcome in found] == list(sources)
    for outcome, layers in zip(found, sources.values(), strict=True):
        scaler = sklearn.preprocessing.StandardScaler().fit(plain(parts[0].x, layers))
        answers, scores = [], []
        for penalty in PENALTIES:
            model = sklearn.linear_model.Ridge(alpha=penalty * 500)
            model.fit(scaler.transform(plain(parts[0].x, layers)), np.eye(4)[parts[0].y])
            said = [model.predict(scaler.transform(plain(p.x, layers))) for p in parts[1:]]
            of_items = [x.reshape(150, 2, 4).mean(1) for x in said]
            scores.append(metrics.accuracy(parts[1].labels, of_items[0]))
            answers.append(of_items[1])
        np.testing.assert_allclose(outcome.validation[0], scores, atol=1.01 / 150)
        best = int(np.argmax(outcome.validation[0]))
        assert outcome.rate == best
        np.testing.assert_allclose(outcome.outputs[0], answers[best], atol=1e-5)
    assert max(found, key=lambda outcome: outcome.score).source != "0"


def test_log_odds_are_those_of_logistic_regression_on_the_outputs() -> None:
    parts = part(0, 800, True), part(1, 900, True), part(2, 300, True)
    first = ridge.search(
        parts, 1, metrics.monitor_roc_auc, {"1": [1]}, (0.1,), False, "a task", nothing
    )[0]
    found = ridge.search(
        parts, 1, metrics.monitor_roc_auc, {"1": [1]}, (0.1,), True, "a task", nothing
    )[0]
    seen = ridge.moments(parts[0].x, parts[0].y)
    fit = ridge.solve(seen, np.arange(24, 48), (0.1,))
    held = (plain(parts[1].x, [1]) - seen.mean[24:]) @ fit.weights[:, 0] + fit.bias
    model = sklearn.linear_model.LogisticRegression(C=1e6, tol=1e-8)
    model.fit(held * 100, parts[1].y[:, 0])
    wanted = model.decision_function(first.outputs[0] * 100)
    np.testing.assert_allclose(found.outputs[0, :, 0], wanted, atol=2e-3 * np.abs(wanted).max())
    assert found.score == pytest.approx(first.score, abs=1e-6)


def test_the_same_features_give_the_same_bits() -> None:
    parts = part(0, 500), part(1, 300), part(2, 300)

    def outputs() -> np.ndarray:
        found = ridge.search(
            parts, 4, metrics.monitor_accuracy, {"1": [1]}, PENALTIES, False, "a task", nothing
        )
        return found[0].outputs

    np.testing.assert_array_equal(outputs(), outputs())


def test_a_score_that_is_not_defined_is_the_worst() -> None:
    parts = part(0, 500), part(1, 300), part(2, 300)

    def monitor(labels, outputs):
        return jnp.where(jnp.abs(outputs).max() > 0.5, jnp.nan, 0.1)

    found = ridge.search(parts, 4, monitor, {"1": [1]}, (1e-3, 1e4), False, "a task", nothing)[0]
    assert found.rate == 1 and found.validation[0, 0] == -np.inf


def test_a_task_is_evaluated_and_says_with_what(tmp_path, few_draws: None) -> None:
    splits = {}
    for number, name in enumerate(tasks.SPLITS):
        x, y = features(number, 200, layers=3), np.arange(200) % 10
        x[1, :, 0] = y
        row = np.arange(200)
        split_labels = labels.Labels(row, y, row, y, row[:0], ())
        splits[name] = evaluate.Prepared(
            x, windows.Rows(row, np.zeros(200), np.zeros(200)), split_labels
        )
    settings = config(tmp_path, kind="ridge", layers="0,1,concat")
    task = tasks.TASKS["gtzan_genre"]
    result = evaluate.evaluate(task, splits, "abcdefghij", 50, settings, nothing)
    assert [layer["source"] for layer in result["layers"]] == ["0", "1", "concat"]
    assert result["chosen"]["source"] in ("1", "concat")
    assert result["chosen"]["penalty"] in settings.penalties
    assert "learning_rate" not in result["chosen"] and len(result["chosen"]["draws"]) == 1
    assert set(result["settings"]) == {"kind", "layers", "penalties", "limit"}
    with pytest.raises(ValueError, match="there is no 'sum': use some of 0,1,2,concat"):
        evaluate.chosen_sources(3, "1,sum", "ridge")


def test_deformed_items_are_answered_by_the_same_regression(tmp_path) -> None:
    random = np.random.default_rng(0)
    splits = {}
    for seed, name in enumerate(tasks.SPLITS):
        x = np.random.default_rng(seed).standard_normal((1, 30, 4)).astype(np.float16)
        number = np.arange(30)
        y = (x[0, :, 0] > 0).astype(int)
        rows = windows.Rows(number, np.zeros(30), np.zeros(30))
        own = labels.Labels(number, y, number, y, number[:0], ())
        splits[name] = evaluate.Prepared(x, rows, own)
    test = splits["test"]
    noise = random.standard_normal(test.features.shape).astype(np.float16)
    deformed = {"same": test, "noise": test._replace(features=noise)}
    settings = config(tmp_path, kind="ridge")
    task = tasks.TASKS["gtzan_genre"]
    found = evaluate.evaluate(task, splits, (), 50, settings, nothing, (), deformed)["deformed"]
    assert (found[0]["drop"], found[0]["p"]) == (0, 1) and found[1]["drop"] > 0.2
