"""Beat decoding against a dense HMM over all states, and F-measures against mir_eval."""

import jax
import mir_eval
import numpy as np
import pytest
import scipy.special

from musicssl.probing import beats


def dense_viterbi(
    activations: np.ndarray, fps: float, least: float = 55, greatest: float = 215
) -> tuple[np.ndarray, np.ndarray]:
    """(tempo, position) of every frame, by the textbook recursion over a full matrix."""
    shortest, longest = round(60 * fps / greatest), round(60 * fps / least)
    lengths = [n for n in range(1, 1000) if shortest <= n <= longest]
    states = [(k, p) for k, n in enumerate(lengths) for p in range(n)]
    number = {state: i for i, state in enumerate(states)}
    a = np.zeros((len(states), len(states)))
    for (k, p), i in number.items():
        if p + 1 < lengths[k]:
            a[i, number[k, p + 1]] = 1
        else:
            weights = np.array([np.exp(-100 * abs(n / lengths[k] - 1)) for n in lengths])
            weights[weights <= np.finfo(float).eps] = 0
            for to, weight in enumerate(weights / weights.sum()):
                a[i, number[to, 0]] = weight
    np.testing.assert_allclose(a.sum(1), 1)
    beat = np.array([p / lengths[k] < 1 / 16 for k, p in states])
    with np.errstate(divide="ignore"):
        log_a = np.log(a)
    score = np.full(len(states), -np.log(len(states)))
    pointers = []
    for activation in activations:
        arrivals = score[:, None] + log_a
        pointers.append(arrivals.argmax(0))
        score = arrivals.max(0) + np.log(np.where(beat, activation, (1 - activation) / 15))
    state = int(score.argmax())
    path = []
    for pointer in reversed(pointers):
        path.append(states[state])
        state = pointer[state]
    tempo, position = np.array(path[::-1]).T
    return tempo, position


def pulses(times: np.ndarray, frames: int, fps: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    frame = np.arange(frames)[:, None] / fps
    near = np.exp(-0.5 * ((frame - times) / 0.03) ** 2).max(1)
    return np.clip(0.8 * near + 0.15 * random.random(frames), 0.001, 0.999)


@pytest.mark.parametrize(("fps", "states"), [(50, 1449), (75, 3193), (100, 5617)])
def test_state_counts_are_madmoms(fps: int, states: int) -> None:
    assert beats.intervals(fps).sum() == states


def test_intervals_at_50_frames_a_second() -> None:
    lengths = beats.intervals(50)
    assert (lengths[0], lengths[-1], len(lengths)) == (14, 55, 42)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_path_is_that_of_a_dense_model(seed: int) -> None:
    # 3 to 13 frames a beat: a matrix that is small enough to be filled
    follows_a_dense_model((0.5, 0.62, 0.8, 0.3)[seed], seed, 12, beats.BEATS)


def test_downbeats_are_those_of_a_dense_model_of_bars() -> None:
    """18 to 72 bars a minute, as MARBLE decodes downbeats: 3 to 13 frames a bar here too."""
    assert beats.DOWNBEATS == (18, 72)
    follows_a_dense_model(1.9, 0, 4, beats.DOWNBEATS)
    assert beats.intervals(50, beats.DOWNBEATS)[[0, -1]].tolist() == [42, 167]


def follows_a_dense_model(period: float, seed: int, fps: float, tempi: beats.Tempi) -> None:
    activations = pulses(np.arange(0.3, 140 / fps, period), 140, fps, seed)
    outputs = np.append(scipy.special.logit(activations), np.full(31, 9.0))  # those take no part
    viterbi = jax.jit(beats.viterbi, static_argnames=("fps", "tempi"))
    found = viterbi(outputs.astype("f4"), 140, fps=fps, tempi=tempi)
    tempo, position = np.zeros((2, 140), int)
    for first, number in zip(*map(np.asarray, found), strict=True):
        for at in range(beats.intervals(fps, tempi)[number]):
            if 0 <= first + at < 140:
                tempo[first + at], position[first + at] = number, at
    wanted_tempo, wanted_position = dense_viterbi(activations, fps, *tempi)
    np.testing.assert_array_equal(tempo, wanted_tempo)
    np.testing.assert_array_equal(position, wanted_position)
    assert (position == 0).sum() > 10


def decoded(activations: np.ndarray, fps: float = 50) -> np.ndarray:
    (found,) = beats.decode([scipy.special.logit(activations)], fps)
    return found


def test_a_steady_pulse_with_noise_and_a_gap_is_followed() -> None:
    times = np.arange(0.4, 30, 0.5)
    heard = times[(times < 12) | (times > 14)]
    found = decoded(pulses(heard, 1500, 50, 3))
    assert beats.f_measures([times], [found])["f"] > 0.97
    assert beats.f_measures([times], [heard[::2]])["f"] < 0.8


def test_the_beat_is_moved_to_the_highest_activation() -> None:
    times = np.arange(1, 20, 0.75)
    activations = pulses(times, 1000, 50, 4)
    found = decoded(activations)
    inner = found[(found > 1) & (found < 19)]
    assert np.abs(inner[:, None] - times).min(1).max() <= 0.045
    frame = np.round(inner * 50).astype(int)
    assert (activations[frame] >= activations[frame + 1]).mean() > 0.9


def test_a_clip_is_decoded_alike_beside_longer_ones() -> None:
    clips = [
        scipy.special.logit(pulses(np.arange(0.3, 30, 0.4 + 0.1 * i), n, 50, i))
        for i, n in enumerate((900, 1499, 40))
    ]
    together = beats.decode(clips, 50)
    for clip, found in zip(clips, together, strict=True):
        np.testing.assert_array_equal(found, beats.decode([clip], 50)[0])
        assert found.max() < len(clip) / 50


@pytest.mark.parametrize("fps", [50, 75])
def test_the_monitor_is_the_f_of_decoded_beats(fps: int) -> None:
    """With clips of several lengths, references on frames, behind the clip, and none at all."""
    random = np.random.default_rng(fps)
    sizes = (700, 500, 333)
    places = [start + np.arange(n) for start, n in zip((0, 700, 1200), sizes, strict=True)]
    references = []
    for period, digits in ((0.5, 2), (0.62, 6)):
        times = np.arange(0.4, 16, period)
        times += 0.02 * random.standard_normal(len(times))
        references.append(np.round(times, digits))
    references.append(np.zeros(0))
    heard = [pulses(r, n, fps, 1) for r, n in zip(references[:2], sizes[:2], strict=True)]
    outputs = scipy.special.logit(np.concatenate(heard))
    outputs = np.append(outputs, random.standard_normal(333)).astype("f4")
    several = np.stack([outputs, random.standard_normal(len(outputs)).astype("f4")])
    monitor = beats.monitor(references, places, fps)
    scores = jax.jit(jax.vmap(lambda x: monitor(None, x[:, None])))(several)
    for x, score in zip(several, scores, strict=True):
        found = beats.decode([x[place] for place in places], fps)
        assert float(score) == pytest.approx(beats.f_measures(references, found)["f"], abs=1e-6)
    assert 0.1 < float(scores[1]) < float(scores[0]) < 0.95
    several[0, 3] = np.nan
    assert np.isnan(monitor(None, several[0][:, None]))


def test_the_largest_matching_is_mir_evals() -> None:
    """Times that are multiples of 10 ms, so that many lie 70 ms apart to the last bit."""
    random = np.random.default_rng(0)
    matched = jax.jit(beats._matched)
    for _ in range(50):
        marks = random.random(120) < 0.3
        reference = np.sort(random.integers(0, 250, 60)) / 100
        time = np.arange(120) / 50
        least = np.searchsorted(time, reference - 0.07, side="left")
        greatest = np.searchsorted(time, reference + 0.07, side="right") - 1
        wanted = beats.matches(reference, np.flatnonzero(marks) / 50, 0.07)
        assert int(matched(marks, least, greatest)) == wanted


def test_reference_beats_as_estimates_score_one() -> None:
    random = np.random.default_rng(5)
    clips = [np.sort(random.uniform(0, 30, n)) for n in (60, 41)]
    assert beats.f_measures(clips, clips) == {"f": 1.0, "f_20ms": 1.0, "f_mean": 1.0}


def test_micro_and_mean_f_differ_as_they_should() -> None:
    reference = [np.arange(6.0, 26), np.arange(6.0, 10)]
    estimate = [reference[0] + 0.05, reference[1] + 0.3]
    scores = beats.f_measures(reference, estimate)
    assert scores["f"] == pytest.approx(2 * 20 / 48)
    assert scores["f_20ms"] == 0
    per_clip = [mir_eval.beat.f_measure(r, e) for r, e in zip(reference, estimate, strict=True)]
    assert scores["f_mean"] == pytest.approx(np.mean(per_clip)) == pytest.approx(0.5)


def test_no_beats_and_no_activations() -> None:
    assert len(decoded(np.zeros(100))) == 0
    assert beats.f_measures([np.arange(9.0)], [np.zeros(0)])["f"] == 0
    assert np.isnan(beats.f_measures([np.zeros(0)], [np.zeros(0)])["f_mean"])


def test_frame_targets_leave_out_what_lies_behind_the_clip() -> None:
    target = beats.frame_targets(np.array([0.0, 0.2, 2.0]), 20, 50, 1)
    assert np.flatnonzero(target).tolist() == [0, 1, 9, 10, 11]
