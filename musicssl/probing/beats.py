"""From frame activations to beats: the bar-pointer HMM of one beat, decoded by Viterbi; F-measure.

The model of Krebs, Böck and Widmer (ISMIR 2015) with the parameters of madmom's
DBNBeatTrackingProcessor, which MARBLE decodes with: 55 to 215 beats a minute, transition lambda
100, observation lambda 16, each beat moved to the highest activation of its beat states. Here a
state is (tempo, frames since the beat). Inside a beat the only way is one frame on, so scores are
kept by tempo in a window that shifts, and only the moments of a beat have a choice to remember.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mir_eval
import numpy as np

_MIN_BPM, _MAX_BPM = 55.0, 215.0
_TRANSITION_LAMBDA, _OBSERVATION_LAMBDA = 100.0, 16.0
TOLERANCE = 0.07  # seconds
_TRIM = 5.0  # seconds at the start that mir_eval's convention leaves out


def intervals(fps: float, min_bpm: float = _MIN_BPM, max_bpm: float = _MAX_BPM) -> np.ndarray:
    """Return how many frames a beat has at each tempo, ascending: 42 at 50 frames a second."""
    return np.arange(round(60 * fps / max_bpm), round(60 * fps / min_bpm) + 1)


def state_count(fps: float) -> int:
    """Count the states of the model: 1,449 at 50 frames a second, 3,193 at 75, 5,617 at 100."""
    return int(intervals(fps).sum())


def _tempo_transitions(lengths: np.ndarray) -> np.ndarray:
    """Return log probabilities of going from a beat of one length (row) to another (column).

    p is proportional to exp(-lambda |to / from - 1|), 0 where that is below float epsilon.
    """
    ratio = lengths[None, :] / lengths[:, None]
    p = np.exp(-_TRANSITION_LAMBDA * np.abs(ratio - 1))
    p[p <= np.spacing(1)] = 0
    p /= p.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.log(p)


class Path(NamedTuple):
    """A way through the states.

    tempo: index of the interval, [t].
    position: frames since the beat began, [t].
    """

    tempo: np.ndarray
    position: np.ndarray


@functools.partial(jax.jit, static_argnames="fps")
def _forward(activations: jax.Array, fps: float) -> tuple[jax.Array, jax.Array]:
    """Score all paths up to each frame.

    Args:
      activations: [t] in (0, 1).

    Returns:
      The scores at the last frame, [tempi, longest], -inf for positions past a tempo's interval;
      and for each frame the tempo before a beat that begins there, [t, tempi].
    """
    lengths = intervals(fps)
    tempi, longest = len(lengths), int(lengths[-1])
    positions = np.arange(longest)
    exists = positions[None] < lengths[:, None]  # [tempi, longest]
    beat = positions[None] / lengths[:, None] < 1 / _OBSERVATION_LAMBDA
    transitions = jnp.asarray(_tempo_transitions(lengths), jnp.float32)
    uniform = jnp.where(exists, -np.log(float(lengths.sum())), -jnp.inf)

    # In a frame every path moves a position on, or from the end of a beat to the start of the next.

    def frame(score: jax.Array, activation: jax.Array) -> tuple[jax.Array, jax.Array]:
        ends = score[np.arange(tempi), lengths - 1]
        arrivals = ends[:, None] + transitions  # [from, to]
        score = jnp.concatenate([arrivals.max(0)[:, None], score[:, :-1]], 1)
        other = (1 - activation) / (_OBSERVATION_LAMBDA - 1)
        score = score + jnp.where(beat, jnp.log(activation), jnp.log(other))
        score = jnp.where(exists, score, -jnp.inf)
        return score, arrivals.argmax(0).astype(jnp.uint8)

    return jax.lax.scan(frame, uniform.astype(jnp.float32), activations)


def viterbi(activations: np.ndarray, fps: float) -> Path:
    """Return the most probable path through the states, from a uniform start.

    Args:
      activations: [t], probability of a beat at each frame.
    """
    lengths = intervals(fps)
    clipped = np.clip(activations, 1e-7, 1 - 1e-7).astype(np.float32)
    score, before = (np.asarray(x) for x in _forward(clipped, fps))

    # Walk back from the best last state.
    tempo, position = np.unravel_index(score.argmax(), score.shape)
    path = Path(np.empty(len(clipped), int), np.empty(len(clipped), int))
    for t in range(len(clipped) - 1, -1, -1):
        path.tempo[t], path.position[t] = tempo, position
        if position:
            position -= 1
        else:
            tempo = before[t, tempo]
            position = lengths[tempo] - 1
    return path


def decode(activations: np.ndarray, fps: float) -> np.ndarray:
    """Return beat times in seconds: the highest activation in each run of beat states.

    Silence from end to end (no activation above 0) has no beats.
    """
    if not len(activations) or not (activations > 0).any():
        return np.zeros(0)
    path = viterbi(activations, fps)
    beat = path.position / intervals(fps)[path.tempo] < 1 / _OBSERVATION_LAMBDA
    edges = np.flatnonzero(np.diff(np.concatenate([[False], beat, [False]]).astype(int)))
    runs = edges.reshape(-1, 2)
    return np.array([first + np.argmax(activations[first:end]) for first, end in runs]) / fps


def frame_targets(times: np.ndarray, frames: int, fps: float, neighbours: int) -> np.ndarray:
    """Return 1 at the frames of beats and `neighbours` to either side, else 0: float32 [frames].

    Frame t begins at t / fps. Beats after the last frame, which GTZAN has, are left out.
    """
    target = np.zeros(frames, np.float32)
    at = np.round(np.asarray(times, np.float64) * fps).astype(int)
    for shift in range(-neighbours, neighbours + 1):
        near = at + shift
        target[near[(near >= 0) & (near < frames)]] = 1
    return target


def matches(reference: np.ndarray, estimate: np.ndarray, tolerance: float) -> int:
    """Return the size of the largest one-to-one matching of beats within `tolerance` seconds."""
    if not len(reference) or not len(estimate):
        return 0
    return len(mir_eval.util.match_events(reference, estimate, tolerance))


def f_measures(
    references: Sequence[np.ndarray], estimates: Sequence[np.ndarray]
) -> dict[str, float]:
    """Return F-measures of beats over a set of clips, times in seconds.

    "f" sums matches at 70 ms over all clips and takes one F of them, as MARBLE's code does;
    "f_20ms" has the tolerance that its paper states. "f_mean" is mir_eval's: the mean of each
    clip's own F, the first 5 s left out; clips without reference beats after that do not count.
    """

    def micro(tolerance: float) -> float:
        hits = sum(matches(r, e, tolerance) for r, e in zip(references, estimates, strict=True))
        total = sum(map(len, references)) + sum(map(len, estimates))
        return 2 * hits / total if total else 0.0

    clip_scores = []
    for reference, estimate in zip(references, estimates, strict=True):
        trimmed = mir_eval.beat.trim_beats(reference, _TRIM)
        trimmed_estimate = mir_eval.beat.trim_beats(estimate, _TRIM)
        if len(trimmed) and len(trimmed_estimate):
            clip_scores.append(mir_eval.beat.f_measure(trimmed, trimmed_estimate))
        elif len(trimmed):
            clip_scores.append(0.0)
    mean = float(np.mean(clip_scores)) if clip_scores else float("nan")
    return {"f": micro(TOLERANCE), "f_20ms": micro(0.02), "f_mean": mean}
