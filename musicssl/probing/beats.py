"""From frame outputs to beats: the bar-pointer HMM of one beat, decoded by Viterbi; F-measure.

The model of Krebs, Böck and Widmer (ISMIR 2015) with the parameters of madmom's
DBNBeatTrackingProcessor, which MARBLE decodes with: 55 to 215 beats a minute (18 to 72 for
downbeats), transition lambda 100, observation lambda 16, each beat moved to the highest activation
of its beat states. Inside a beat a path can only go on to the next frame. So it is a sequence of
beats, each with a first frame and a tempo, and it is enough to keep the score at the end of each
possible beat. All of this is in JAX, since a probe in training is scored by the beats that are
decoded from its outputs.

Axis letters: t frames, k clips, q tempi, r reference beats.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mir_eval
import numpy as np

_TRANSITION_LAMBDA, _OBSERVATION_LAMBDA = 100.0, 16
_LEAST_ACTIVATION = 1e-7  # the greatest is 1 - 1e-7
TOLERANCE = 0.07  # seconds
_TRIM = 5.0  # seconds at the start that mir_eval's convention leaves out

Monitor = Callable[[jax.Array, jax.Array], jax.Array]  # of labels and outputs


class Tempi(NamedTuple):
    """The least and the greatest tempo that is decoded, in beats (or bars) a minute."""

    least: float
    greatest: float


BEATS, DOWNBEATS = Tempi(55.0, 215.0), Tempi(18.0, 72.0)


def intervals(fps: float, tempi: Tempi = BEATS) -> np.ndarray:
    """Return how many frames a beat has at each tempo, ascending: 42 at 50 frames a second."""
    return np.arange(round(60 * fps / tempi.greatest), round(60 * fps / tempi.least) + 1)


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
    """The beats of a path through the states, the last first; there are more places than beats.

    first: the frame that each begins with; negative for one that is under way at the start. Places
      that are left over have frames before any clip.
    tempo: index of the interval.
    """

    first: jax.Array
    tempo: jax.Array


def viterbi(outputs: jax.Array, frames: jax.Array, fps: float, tempi: Tempi = BEATS) -> Path:
    """Return the most probable path through the states, from a uniform start.

    A state's observation is log(a) in the first sixteenth of a beat, for an activation a, and
    log((1 - a) / 15) elsewhere. Every path has one state a frame, so the second can be subtracted
    from both, which leaves log(a / (1 - a)) + log(15) at beat frames and 0 elsewhere.

    Args:
      outputs: logits of a beat at each frame, [t].
      frames: how many of these frames are real.
    """
    lengths = intervals(fps, tempi)
    number, longest = np.arange(len(lengths)), int(lengths[-1])
    transitions = jnp.asarray(_tempo_transitions(lengths), jnp.float32)  # [from, to]
    t = len(outputs)

    # The sum over the beat frames of each possible beat; row 0 has the beats that begin `longest`
    # before the first frame.
    most = np.log((1 - _LEAST_ACTIVATION) / _LEAST_ACTIVATION)
    worth = jnp.clip(outputs, -most, most) + np.log(_OBSERVATION_LAMBDA - 1)
    worth = jnp.where(jnp.arange(t) < frames, worth, 0)
    beat = _beat_frames(lengths)  # [longest beat part, q]
    padded = jnp.pad(worth, (longest, len(beat) - 1))
    score = sum(padded[i : i + longest + t, None] * own for i, own in enumerate(beat))  # [.., q]

    # From frame to frame, add the score of the best path up to a beat that begins there: it comes
    # from the end of a beat of any tempo. Beats that are under way at the start have no such path.
    def ends(score: jax.Array, first: jax.Array) -> jax.Array:
        return score[jnp.maximum(longest + first - lengths, 0), number]  # [q]

    def begin(score: jax.Array, first: jax.Array) -> tuple[jax.Array, None]:
        arrivals = ends(score, first)[:, None] + transitions
        return score.at[longest + first].add(arrivals.max(0)), None

    score, _ = jax.lax.scan(begin, score, jnp.arange(1, t))

    # The last beat is one that the last frame is in. Walk back from there.
    first = jnp.arange(longest + t)[:, None] - longest
    is_last = (first < frames) & (first + lengths >= frames)
    last = jnp.where(is_last, score, -jnp.inf).argmax()

    def before(path: Path, _: None) -> tuple[Path, Path]:
        tempo = (ends(score, path.first) + transitions[:, path.tempo]).argmax()
        first = path.first - jnp.asarray(lengths)[tempo]
        none_before = path.first <= 0
        return Path(jnp.where(none_before, -2 * longest, first), tempo), path

    start = Path(last // len(lengths) - longest, last % len(lengths))
    return jax.lax.scan(before, start, length=t // int(lengths[0]) + 2)[1]


def _beat_frames(lengths: np.ndarray) -> np.ndarray:
    """Return which frames of a beat are in its first sixteenth, by tempo: bool [frames, q]."""
    count = -(-lengths // _OBSERVATION_LAMBDA)
    return np.arange(count.max())[:, None] < count


def _decoded(outputs: jax.Array, frames: jax.Array, fps: float, tempi: Tempi) -> jax.Array:
    """Return at which frames beats are: bool [t]. Arguments are those of `viterbi`."""
    path = viterbi(outputs, frames, fps, tempi)
    beat = _beat_frames(intervals(fps, tempi))
    run = path.first[:, None] + np.arange(len(beat))  # [beats, frames]
    heard = (run >= 0) & (run < frames) & jnp.asarray(beat.T)[path.tempo]
    t = len(outputs)
    peak = jnp.where(heard, outputs[jnp.clip(run, 0, t - 1)], -jnp.inf).argmax(1)
    at = jnp.where(heard.any(1), path.first + peak, t)
    return jnp.zeros(t + 1, bool).at[at].set(True)[:t]


@functools.partial(jax.jit, static_argnames=("fps", "tempi"))
def _decoded_clips(outputs: jax.Array, frames: jax.Array, fps: float, tempi: Tempi) -> jax.Array:
    return jax.vmap(lambda x, n: _decoded(x, n, fps, tempi))(outputs, frames)


def decode(clips: Sequence[np.ndarray], fps: float, tempi: Tempi = BEATS) -> list[np.ndarray]:
    """Return the beat times of each clip in seconds: the highest output in each run of beat states.

    Args:
      clips: logits of a beat at each frame, [t] each. A clip without any activation (all of them
        -inf) has no beats.
    """
    frames = np.array([len(clip) for clip in clips])
    outputs = np.full((len(clips), frames.max(initial=1)), -np.inf, np.float32)
    for own, clip in zip(outputs, clips, strict=True):
        own[: len(clip)] = clip
    marks = np.asarray(_decoded_clips(outputs, frames, fps, tempi))
    times = []
    for own, mark in zip(outputs, marks, strict=True):
        silent = np.isneginf(own).all()
        times.append(np.zeros(0) if silent else np.flatnonzero(mark) / fps)
    return times


def monitor(
    references: Sequence[np.ndarray],
    places: Sequence[np.ndarray],
    fps: float,
    tempi: Tempi = BEATS,
) -> Monitor:
    """Return the "f" of `f_measures` as a function, in JAX, of (anything, outputs [n, 1]).

    Args:
      references: beat times of each clip, in seconds, ascending.
      places: of each clip, the number of the output that each frame has.
    """
    frames = np.array([len(place) for place in places])
    t = int(frames.max())
    rows = np.stack([np.pad(place, (0, t - len(place)), mode="edge") for place in places])  # [k, t]

    # The frames that match each reference, computed as mir_eval does, to the last bit. No frame
    # matches the places that are left over.
    time = np.arange(t) / fps
    most = max(len(own) for own in references)
    least = np.full((len(references), most), t)
    greatest = np.full_like(least, -1)
    for k, own in enumerate(references):
        least[k, : len(own)] = np.searchsorted(time, own - TOLERANCE, side="left")
        greatest[k, : len(own)] = np.searchsorted(time, own + TOLERANCE, side="right") - 1
    total = sum(len(own) for own in references)

    def f_measure(labels: jax.Array, outputs: jax.Array) -> jax.Array:
        del labels
        marks = _decoded_clips(outputs[:, 0][rows], frames, fps, tempi)  # [k, t]
        hits = jax.vmap(_matched)(marks, jnp.asarray(least), jnp.asarray(greatest)).sum()
        f = 2 * hits / (total + marks.sum())
        return jnp.where(jnp.isfinite(outputs).all(), f, jnp.nan)

    return f_measure


def _matched(marks: jax.Array, least: jax.Array, greatest: jax.Array) -> jax.Array:
    """Count the pairs of the largest matching: each reference takes the earliest beat left to it.

    Args:
      marks: at which frames beats are, bool [t].
      least, greatest: the frames that match each reference, [r], both ascending.
    """
    t = len(marks)
    frame = jnp.where(marks, jnp.arange(t), t)
    following = jnp.append(jax.lax.cummin(frame, reverse=True), t)  # the first beat from here on

    def take_one(
        free: jax.Array, bounds: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        beat = following[jnp.minimum(jnp.maximum(free, bounds[0]), t)]
        hit = beat <= jnp.minimum(bounds[1], t - 1)
        return jnp.where(hit, beat + 1, free), hit

    return jax.lax.scan(take_one, jnp.int32(0), (least, greatest))[1].sum()


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

    "f" sums matches at 70 ms over all clips and takes one F of the sums, as MARBLE's code does;
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
