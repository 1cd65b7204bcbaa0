"""Jitted monitors against scikit-learn and mir_eval; chance levels that need no audio."""

import itertools

import jax
import mir_eval
import numpy as np
import pytest
import sklearn.metrics

from musicssl.probing import metrics


def multi_label(seed: int, items: int = 200, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Labels of varied frequency, one class never and one always; outputs with many ties."""
    random = np.random.default_rng(seed)
    labels = (random.random((items, classes)) < np.linspace(0.02, 0.9, classes)).astype(int)
    labels[:, 3], labels[:, 5] = 0, 1
    outputs = np.round(random.standard_normal((items, classes)) + labels, 1)
    return labels, outputs.astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["roc_auc", "average_precision"])
def test_multi_label_scores_are_scikit_learns(name: str, seed: int) -> None:
    labels, outputs = multi_label(seed)
    known = [0, 1, 2, 4, 6]
    function = getattr(sklearn.metrics, f"{name}_score")
    wanted = np.mean([function(labels[:, c], outputs[:, c]) for c in known])
    assert getattr(metrics, name)(labels, outputs) == pytest.approx(wanted, abs=1e-12)
    if name == "roc_auc":
        monitor = jax.jit(metrics.monitor_roc_auc)
        assert float(monitor(labels, outputs)) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("name", ["roc_auc", "average_precision"])
def test_no_class_to_score_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="no class has both positives and negatives"):
        getattr(metrics, name)(np.ones((4, 2), int), np.zeros((4, 2)))


def test_accuracy_r2_and_key_monitors() -> None:
    random = np.random.default_rng(1)
    outputs = random.standard_normal((300, 24)).astype(np.float32)
    labels = np.where(random.random(300) < 0.4, outputs.argmax(1), random.integers(0, 24, 300))
    values = [
        (metrics.accuracy, metrics.monitor_accuracy, np.mean(outputs.argmax(1) == labels)),
        (metrics.key_score, metrics.monitor_key, None),
    ]
    for score, monitor, wanted in values:
        reported = score(labels, outputs)
        assert 0.3 < reported < 0.7
        assert wanted is None or reported == pytest.approx(wanted)
        assert float(jax.jit(monitor)(labels, outputs)) == pytest.approx(reported, abs=1e-6)
    truth = random.standard_normal((50, 2)).astype(np.float32)
    guess = truth + random.standard_normal((50, 2)).astype(np.float32)
    wanted = sklearn.metrics.r2_score(truth, guess)
    assert metrics.r2(truth, guess) == pytest.approx(wanted)
    assert float(metrics.monitor_r2(truth, guess)) == pytest.approx(wanted, abs=1e-5)
    both = metrics.r2_arousal(truth, guess), metrics.r2_valence(truth, guess)
    assert np.mean(both) == pytest.approx(wanted)


def test_predicting_the_mean_has_r2_zero() -> None:
    truth = np.random.default_rng(0).standard_normal((125, 2))
    assert metrics.r2(truth, np.broadcast_to(truth.mean(0), truth.shape)) == pytest.approx(0)


def one_hot(classes: np.ndarray) -> np.ndarray:
    return np.eye(24)[classes]


def shifted(keys: np.ndarray, semitones: int) -> np.ndarray:
    return keys // 12 * 12 + (keys % 12 + semitones) % 12


def test_key_score_identities() -> None:
    keys = np.random.default_rng(2).integers(0, 24, 604)
    score, descending = metrics.key_score, metrics.key_score_descending
    assert score(keys, one_hot(keys)) == 1
    # an estimate a fifth above the reference counts, one a fifth below only if asked for
    assert score(keys, one_hot(shifted(keys, 7))) == 0.5
    assert score(shifted(keys, 7), one_hot(keys)) == 0
    assert descending(shifted(keys, 7), one_hot(keys)) == 0.5
    major = keys % 12
    assert score(major, one_hot(12 + (major + 9) % 12)) == pytest.approx(0.3)  # relative
    assert score(major, one_hot(12 + major)) == pytest.approx(0.2)  # parallel


def test_uniform_guesses_of_a_key_score_a_twelfth() -> None:
    assert metrics.key_weights().mean() == pytest.approx(2 / 24)


def test_chance_average_precision_is_the_share_of_positives() -> None:
    labels = (np.random.default_rng(3).random((4000, 50)) < 0.06).astype(int)
    constant = np.zeros(labels.shape)
    assert metrics.average_precision(labels, constant) == pytest.approx(labels.mean(), abs=1e-3)
    assert metrics.roc_auc(labels, constant) == pytest.approx(0.5)


def test_interval_covers_and_narrows() -> None:
    random = np.random.default_rng(4)
    widths = []
    for items in (100, 1600):
        labels = random.integers(0, 24, items)
        outputs = one_hot(np.where(random.random(items) < 0.7, labels, (labels + 1) % 24))
        low, high = metrics.interval(
            metrics.bootstrap(metrics.accuracy, labels, outputs, draws=300)
        )
        assert low < metrics.accuracy(labels, outputs) < high
        error = np.sqrt(0.7 * 0.3 / items)
        assert (high - low) == pytest.approx(2 * 1.96 * error, rel=0.25)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_interval_of_a_rare_class_is_finite() -> None:
    labels = np.zeros((30, 1), int)
    labels[4] = 1
    outputs = np.random.default_rng(0).random((30, 1))
    low, high = metrics.interval(metrics.bootstrap(metrics.roc_auc, labels, outputs))
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize("score", [metrics.accuracy, metrics.key_score, metrics.roc_auc])
def test_samples_scored_at_once_have_the_scores_of_one_after_another(score) -> None:
    """Ties, a class that many samples lack, and one that no item has."""
    random = np.random.default_rng(3)
    outputs = np.round(random.random((60, 24)), 1)
    labels = random.integers(0, 24, 60)
    if score is metrics.roc_auc:
        labels = (random.random((60, 24)) < np.linspace(0, 0.5, 24)).astype(np.float32)
        labels[:, 0] = 0
    at_once = metrics.bootstrap(score, labels, outputs, seed=5, draws=40)
    wrapped = metrics.bootstrap(lambda y, x: score(y, x), labels, outputs, seed=5, draws=40)
    np.testing.assert_allclose(at_once, wrapped, rtol=1e-12)
    assert len(np.unique(at_once)) > 5


def test_samples_without_any_class_to_score_are_not_defined() -> None:
    labels = np.eye(4)[:, :1]
    values = metrics.bootstrap(metrics.roc_auc, labels, labels, draws=50)
    assert set(np.unique(values[np.isfinite(values)])) == {1.0} and np.isnan(values).any()


def test_one_seed_is_resampled_by_items_alone() -> None:
    draws = np.random.default_rng(0).random((1, 50))
    draws[0, 7] = np.nan
    np.testing.assert_array_equal(metrics.over_seeds([draws]), draws[0])
    np.testing.assert_array_equal(metrics.over_seeds([draws], stream=2), draws[0])


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_seeds_are_drawn_with_each_sample_of_items(seeds: int) -> None:
    """Against every way to draw one seed fewer than there are, each as likely as the others."""
    draws = np.random.default_rng(seeds).random((seeds, 1)) + np.zeros(20_000)
    ways = [np.mean(way) for way in itertools.product(draws[:, 0], repeat=seeds - 1)]
    found = metrics.over_seeds([draws])
    assert np.isin(np.round(found, 9), np.round(ways, 9)).all()
    assert found.mean() == pytest.approx(draws[:, 0].mean(), abs=0.01)
    # the unbiased estimate of the variance of their mean
    assert found.var() == pytest.approx(draws[:, 0].var(ddof=1) / seeds, rel=0.05)
    np.testing.assert_array_equal(found, metrics.over_seeds([draws]))
    apart = metrics.over_seeds([draws], 1)
    assert abs(np.corrcoef(found, apart)[0, 1]) < 0.03


def test_of_several_training_runs_each_counts_with_the_mean_of_its_probes() -> None:
    runs = np.random.default_rng(1).random((4, 3, 1)) + np.zeros(20_000)
    found = metrics.over_seeds([*runs])
    means = runs[:, :, 0].mean(1)
    assert found.mean() == pytest.approx(means.mean(), abs=0.01)
    assert found.var() == pytest.approx(means.var(ddof=1) / 4, rel=0.05)


def mean_output(truth: np.ndarray, outputs: np.ndarray) -> float:
    return float(outputs.mean())


@pytest.mark.parametrize("of_seeds", [0.0, 1.0])
def test_intervals_cover_the_truth_where_seeds_differ(of_seeds: float) -> None:
    """The truth is the mean of all items and all seeds; three seeds and 100 items are seen.

    Seeds make as much of the variance of the mean as items do, or none of it. The interval of a
    single seed, over items alone, misses the truth far more often where seeds differ.
    """
    random, items, trials = np.random.default_rng(int(10 * of_seeds)), 100, 150
    covered, alone = 0, 0
    for _ in range(trials):
        hard = random.standard_normal(items)  # what all seeds find hard
        seeds = 3**0.5 * of_seeds / items**0.5 * random.standard_normal(3)
        outputs = hard + seeds[:, None] + 0.3 * random.standard_normal((3, items))
        draws = [metrics.bootstrap(mean_output, hard, x, draws=150) for x in outputs]
        low, high = metrics.interval(metrics.over_seeds([draws]))
        covered += low < 0 < high
        low, high = metrics.interval(draws[0])
        alone += low < 0 < high
    assert covered / trials > 0.89
    assert of_seeds == 0 or alone < covered
    assert of_seeds < 1 or alone / trials < 0.8


def test_the_paired_test_agrees_with_one_that_draws_for_itself() -> None:
    """Two answers to the same items: the difference per item is drawn, with draws of its own."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 400)
    right = random.random((2, 400)) < np.array([[0.75], [0.68]])
    outputs = [one_hot(np.where(r, labels, (labels + 1) % 5)) for r in right]
    ours, theirs = (metrics.bootstrap(metrics.accuracy, labels, x) for x in outputs)
    scores = [metrics.accuracy(labels, x) for x in outputs]
    found = metrics.paired([[ours]], [[theirs]], scores[0] - scores[1])
    each = right[0].astype(float) - right[1]
    drawn = each[np.random.default_rng(1).integers(0, 400, (20_000, 400))].mean(1)
    np.testing.assert_allclose(found[1:3], np.percentile(drawn, [2.5, 97.5]), atol=0.008)
    assert found.mean == pytest.approx(each.mean())
    assert found.p == pytest.approx(2 * (drawn <= 0).mean(), abs=0.02)
    assert 0.001 < found.p < 0.2  # a case in which the answer is not plain
    unpaired = metrics.interval(ours)[0] - metrics.interval(theirs)[1]
    assert unpaired < found.low  # items that both find hard do not blur the difference
    assert metrics.paired([[ours]], [[ours]], 0.0).p == 1
    assert metrics.paired([[ours + 1]], [[theirs]], 1.0).p == pytest.approx(2 / 1001)


def test_the_paired_test_of_means_agrees_with_one_that_draws_for_itself() -> None:
    """Three probe seeds of two encoders, the same items for all, seeds of each drawn apart."""
    random = np.random.default_rng(2)
    hard = random.random(300)
    skills = (0.62, 0.68, 0.66, 0.60, 0.58, 0.66)
    right = [hard + 0.2 * random.standard_normal(300) < skill for skill in skills]
    draws = [metrics.bootstrap(mean_output, hard, own) for own in right]
    mean = np.mean(right[:3]) - np.mean(right[3:])
    found = metrics.paired([draws[:3]], [draws[3:]], mean)
    drawn = []
    for _ in range(2000):
        items = random.integers(0, 300, 300)
        ours, theirs = random.integers(0, 3, 2), 3 + random.integers(0, 3, 2)
        drawn.append(
            np.mean([right[s][items].mean() for s in ours])
            - np.mean([right[s][items].mean() for s in theirs])
        )
    assert found.mean == mean
    np.testing.assert_allclose(found[1:3], np.percentile(drawn, [2.5, 97.5]), atol=0.01)
    assert found.p == pytest.approx(2 * np.mean(np.array(drawn) <= 0), abs=0.04)
    assert 0.02 < found.p < 0.5
    assert found == metrics.paired([draws[:3]], [draws[3:]], mean)


def test_tempo_accuracies_are_mir_evals_of_one_tempo() -> None:
    """mir_eval's detection of a single tempo (weight 1) within 4 %, factors tried one by one."""
    random = np.random.default_rng(0)
    tempi = random.uniform(40, 240, 400).astype(np.float32)
    factor = random.choice([1, 1, 2, 3, 1 / 2, 1 / 3, 1.25], 400)
    estimates = np.clip(np.round(tempi * factor * random.normal(1, 0.025, 400)), 30, 285)
    outputs = np.eye(256)[estimates.astype(int) - 30]

    def hit(tempo: float, estimate: float) -> bool:
        slow_and_fast = np.array([tempo, tempo]), np.array([estimate, estimate])
        return mir_eval.tempo.detection(slow_and_fast[0], 1.0, slow_and_fast[1], tol=0.04)[0] == 1

    single = [hit(t, e) for t, e in zip(tempi, estimates, strict=True)]
    octaves = [
        any(hit(t * f, e) for f in (1, 2, 3, 1 / 2, 1 / 3))
        for t, e in zip(tempi, estimates, strict=True)
    ]
    assert metrics.tempo_accuracy(tempi, outputs) == pytest.approx(np.mean(single))
    assert metrics.tempo_accuracy_octaves(tempi, outputs) == pytest.approx(np.mean(octaves))
    assert 0.2 < np.mean(single) < np.mean(octaves) < 0.9
    assert float(metrics.monitor_tempo(tempi, outputs)) == pytest.approx(np.mean(single))


def rows_of_clips(score, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and outputs of rows, and their clips: 40 of 1 to 12 rows each, in a mixed order.

    Rows of a clip are right or wrong together.
    """
    random = np.random.default_rng(seed)
    clips = np.repeat(np.arange(40), random.integers(1, 13, 40))
    clips = clips[random.permutation(len(clips))]
    heard = random.random(40) < 0.6
    labels = random.integers(0, 24, len(clips))
    outputs = one_hot(np.where(heard[clips], labels, (labels + 1) % 24))
    outputs = outputs + 0.3 * np.round(random.random(outputs.shape), 1)
    if score in (metrics.roc_auc, metrics.average_precision):
        labels = one_hot(labels)[:, :5]
        outputs = outputs[:, :5]
    return labels, outputs, 100 + 7 * clips


@pytest.mark.parametrize(
    "score",
    [metrics.accuracy, metrics.key_score, metrics.roc_auc, metrics.average_precision],
)
def test_clips_are_drawn_with_all_of_their_rows(score) -> None:
    """Against a bootstrap that draws clips one after another and puts their rows together."""
    labels, outputs, clips = rows_of_clips(score)
    found = metrics.bootstrap(score, labels, outputs, clips, seed=3, draws=30)
    random, names = np.random.default_rng(3), np.unique(clips)
    for value in found:
        rows: list[int] = []
        for number in random.integers(0, len(names), len(names)):
            rows += [i for i, clip in enumerate(clips) if clip == names[number]]
        assert value == pytest.approx(score(labels[rows], outputs[rows]), abs=1e-12)


def test_the_interval_of_clips_is_that_of_a_bootstrap_with_draws_of_its_own() -> None:
    """A share of rows: sums and numbers of rows by clip, drawn in NumPy by another sequence.

    Rows drawn one by one, as if no two were of one clip, have an interval far too narrow.
    """
    labels, outputs, clips = rows_of_clips(metrics.accuracy)
    low, high = metrics.interval(metrics.bootstrap(metrics.accuracy, labels, outputs, clips))
    number = np.unique(clips, return_inverse=True)[1]
    right, rows = np.bincount(number, outputs.argmax(1) == labels), np.bincount(number)
    drawn = np.random.default_rng(9).integers(0, 40, (20_000, 40))
    wanted = np.percentile(right[drawn].sum(1) / rows[drawn].sum(1), [2.5, 97.5])
    np.testing.assert_allclose([low, high], wanted, atol=0.02)
    by_rows = metrics.interval(metrics.bootstrap(metrics.accuracy, labels, outputs))
    assert by_rows[1] - by_rows[0] < 0.6 * (high - low)


@pytest.mark.parametrize("score", [metrics.accuracy, metrics.key_score, metrics.roc_auc])
def test_rows_that_say_nothing_new_narrow_nothing(score) -> None:
    """Every row of a clip five times over: the same samples, the same interval and p."""
    labels, outputs, clips = rows_of_clips(score)
    five = np.repeat(np.arange(len(labels)), 5)
    draws = [
        metrics.bootstrap(score, labels[rows], outputs[rows], clips[rows], draws=100)
        for rows in (slice(None), five)
    ]
    np.testing.assert_allclose(draws[1], draws[0], rtol=1e-12)
    assert np.ptp(draws[0]) > 0.05


@pytest.mark.parametrize("score", [metrics.accuracy, metrics.key_score, metrics.roc_auc])
def test_where_an_item_is_a_clip_samples_are_of_items_as_ever(score) -> None:
    """Bit by bit the samples that NumPy draws of items, whether clips are named or not."""
    labels, outputs, _ = rows_of_clips(score)
    found = metrics.bootstrap(score, labels, outputs, seed=4, draws=50)
    named = metrics.bootstrap(score, labels, outputs, np.arange(len(labels)), seed=4, draws=50)
    np.testing.assert_array_equal(found, named)
    random = np.random.default_rng(4)
    chosen = [random.integers(0, len(labels), len(labels)) for _ in range(50)]
    scores = {
        metrics.accuracy: lambda x: (outputs.argmax(-1) == labels)[x].mean(),
        metrics.key_score: lambda x: metrics.key_weights()[labels, outputs.argmax(-1)][x].mean(),
        metrics.roc_auc: lambda x: metrics.roc_auc(labels[x], outputs[x]),
    }
    wanted = np.array([scores[score](x) for x in chosen])
    if score is metrics.roc_auc:
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    else:
        np.testing.assert_array_equal(found, wanted)


def test_the_paired_test_of_clips_agrees_with_one_that_draws_for_itself() -> None:
    """Two encoders with three probe seeds each, which differ by clips: clips and seeds are drawn.

    By rows the same difference would be told with far more certainty.
    """
    random = np.random.default_rng(5)
    clips = np.repeat(np.arange(50), 20)
    hard = random.random(50)
    skills = (0.72, 0.75, 0.73, 0.60, 0.62, 0.58)
    right = [hard[clips] + 0.25 * random.standard_normal(50)[clips] < skill for skill in skills]
    mean = float(np.mean(right[:3]) - np.mean(right[3:]))

    def tested(clips: np.ndarray | None) -> metrics.Difference:
        draws = [metrics.bootstrap(mean_output, x, x, clips) for x in right]
        return metrics.paired([draws[:3]], [draws[3:]], mean)

    by_clip = np.stack(right).reshape(6, 50, 20).mean(2)
    drawn = []
    for _ in range(4000):
        chosen = random.integers(0, 50, 50)
        ours, theirs = random.integers(0, 3, 2), 3 + random.integers(0, 3, 2)
        drawn.append(by_clip[ours][:, chosen].mean() - by_clip[theirs][:, chosen].mean())
    found, by_rows = tested(clips), tested(None)
    np.testing.assert_allclose(found[1:3], np.percentile(drawn, [2.5, 97.5]), atol=0.02)
    assert found.p == pytest.approx(2 * np.mean(np.array(drawn) <= 0), abs=0.03)
    assert by_rows.p < found.p / 3 and 0.01 < found.p < 0.3
