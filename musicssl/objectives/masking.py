"""Masks for masked prediction, drawn on the device with static shapes.

Span masks follow fairseq's compute_mask_indices (wav2vec 2.0, section 3.1): a clip of t frames gets
n = max(min_spans, floor(probability * t / span + r)) spans, r uniform in [0, 1), with distinct
starts uniform over 0 .. t - span - 1; spans may overlap, so the masked fraction is smaller than
the probability. fairseq then cuts every clip of one GPU's batch to the smallest masked count in
it, by dropping masked frames at random, which leaves holes in the spans (require_same_masks, its
default in both recipes). `equal_counts` is the number of clips in such a group, for instance 7 for
music2vec's clips of 30 s; 0 keeps whole spans.

Block masks follow fairseq's compute_block_mask_1d (data2vec 2.0, section 3.2): a clip gets several
masks, all of which mask the same number of its frames, known before any draw.

Everything is drawn for the global batch: its masks do not depend on the devices that it is sharded
over.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# With equal counts there is room for this many times a clip's expected masked frames. If all clips
# of a group have more, their count is cut to that room. This happens in fewer than 1 of 10,000
# draws for a group of 6 or more clips, and in 1 of 40 for a group of 2 clips of 5 s.
_HEADROOM = 1.05


class SpanMask(NamedTuple):
    """Which frames of a batch are masked, as a mask and as a list with room for m per clip.

    mask: bool [b, t]. frames: int32 [b, m], the masked frames of each clip and then others.
    valid: bool [b, m], which of `frames` are masked. Block masks have an axis for the copies of a
    clip after the first, and list all frames: the masked ones and then the visible, each in order.
    """

    mask: jax.Array
    frames: jax.Array
    valid: jax.Array


class Batch(NamedTuple):
    """What a loss sees of a batch, or of one part of it when gradients are accumulated.

    encoder_input: [b, n], normalised if the encoder is trained on normalised clips.
    waveform: [b, n] the same audio in [-1, 1), never normalised.
    masked, clips: masked frames and clips of the whole global batch, which losses divide by.
    """

    encoder_input: jax.Array
    waveform: jax.Array
    mask: SpanMask
    masked: jax.Array
    clips: int


def draw(key: jax.Array, clips: int, frames: int, **rule: Any) -> SpanMask:
    """Draw the masks of a configuration's `mask` section, which has `copies` for block masks.

    Raises:
      ValueError: the clips or the batch do not fit the rule.
    """
    return (block_mask if "copies" in rule else span_mask)(key, clips, frames, **rule)


def span_mask(
    key: jax.Array,
    clips: int,
    frames: int,
    *,
    probability: float,
    span: int,
    min_spans: int,
    equal_counts: int,
) -> SpanMask:
    """Draw masks for a batch.

    Raises:
      ValueError: the clip is too short for the spans, or equal_counts does not divide the batch.
    """
    if equal_counts and clips % equal_counts:
        raise ValueError(
            f"mask.equal_counts is {equal_counts} and does not divide the batch of {clips} clips: "
            "choose a divisor, or 0 for whole spans"
        )
    if span < 1 or not 1 <= _max_spans(frames, probability, span, min_spans) < frames:
        raise ValueError(
            f"mask.probability {probability} and mask.span {span} do not fit a clip of {frames} "
            "frames: use a longer data.crop_frames"
        )

    # How many spans each clip gets, where they start, and the frames that they cover.
    count_key, start_key, cut_key = jax.random.split(key, 3)
    rounding = jax.random.uniform(count_key, (clips, 1))
    spans = jnp.maximum(min_spans, jnp.floor(probability * frames / span + rounding))  # [b, 1]
    # fairseq widens the range of starts when it holds no more than the spans asked for
    starts = jnp.where(frames - span > spans, frames - span, spans + 1)  # [b, 1]
    score = jax.random.uniform(start_key, (clips, frames))
    score = jnp.where(jnp.arange(frames) < starts, score, 2.0)
    is_start = _rank(score) < spans  # [b, t]
    begun = jnp.cumsum(is_start, axis=1)
    ended = jnp.pad(begun, ((0, 0), (span, 0)))[:, :frames]
    mask = begun > ended  # [b, t]

    # The masked frames in random order, cut to an equal count in each group if that is asked for.
    capacity = mask_capacity(
        frames, probability=probability, span=span, min_spans=min_spans, equal_counts=equal_counts
    )
    order = jnp.where(mask, jax.random.uniform(cut_key, (clips, frames)), 2.0)
    count = mask.sum(axis=1)  # [b]
    if equal_counts:
        smallest = count.reshape(-1, equal_counts).min(axis=1)  # [b / equal_counts]
        count = jnp.repeat(jnp.minimum(smallest, capacity), equal_counts)  # [b]
        mask = _rank(order) < count[:, None]
    chosen = jnp.argsort(order, axis=1)[:, :capacity]  # [b, m]
    return SpanMask(mask, chosen, jnp.arange(capacity) < count[:, None])


def block_mask(
    key: jax.Array,
    clips: int,
    frames: int,
    *,
    copies: int,
    probability: float,
    span: int,
    adjust: float,
    inverse: bool,
) -> SpanMask:
    """Draw several masks of each clip, which mask `masked_in_copy` frames each.

    Blocks of `span` frames are laid around centres that are drawn with replacement. Without
    overlap, they would cover a share of the frames equal to the probability plus `adjust`. Then
    single frames, drawn at random, are added or removed until the count is right. Blocks are
    masked, or left visible if `inverse` is set.

    Raises:
      ValueError: the clip is too short for the blocks, or there are no copies.
    """
    covered = 1 - probability if inverse else probability
    centres = int(frames * ((covered + adjust) / span)) if span > 0 else -1
    masked = masked_in_copy(frames, probability, inverse)
    if copies < 1:
        raise ValueError(f"mask.copies is {copies}: use 1 or more")
    if centres < 0 or span > frames or not 0 < masked < frames:
        raise ValueError(
            f"mask.probability {probability}, mask.span {span} and mask.adjust {adjust} do not fit "
            f"a clip of {frames} frames: use a longer data.crop_frames"
        )

    # The frames that blocks cover: those that have a centre near enough on either side.
    centre_key, cut_key = jax.random.split(key)
    shape = (clips, copies, frames)
    drawn = jax.random.randint(centre_key, (clips, copies, centres, 1), 0, frames)
    is_centre = (drawn == jnp.arange(frames)).any(axis=2)  # [b, k, t]
    begun = jnp.cumsum(jnp.pad(is_centre, ((0, 0), (0, 0), (0, span - 1))), axis=2)
    ended = jnp.pad(begun, ((0, 0), (0, 0), (span, 0)))[..., : frames + span - 1]
    before = span // 2  # frames of a block before its centre
    is_covered = (begun > ended)[..., before : before + frames]  # [b, k, t]

    # The right number of frames: covered ones first, and then others.
    order = jax.random.uniform(cut_key, shape) + jnp.where(is_covered, 0, 1)
    chosen = _rank(order) < (frames - masked if inverse else masked)
    mask = ~chosen if inverse else chosen
    listed = jnp.argsort(~mask, axis=2, stable=True)  # [b, k, t]
    return SpanMask(mask, listed, jnp.broadcast_to(jnp.arange(frames) < masked, shape))


def masked_in_copy(frames: int, probability: float, inverse: bool) -> int:
    """Return how many frames of a clip each of its block masks masks."""
    return frames - int(frames * (1 - probability)) if inverse else int(frames * probability)


def _rank(x: jax.Array) -> jax.Array:
    """Return the place of each element in its row's ascending order, 0 for the smallest."""
    return jnp.argsort(jnp.argsort(x, axis=-1), axis=-1)


def _max_spans(frames: int, probability: float, span: int, min_spans: int) -> int:
    """Return the most spans that a clip can get."""
    return max(min_spans, math.floor(probability * frames / span) + 1)


def mask_capacity(
    frames: int, *, probability: float, span: int, min_spans: int, equal_counts: int
) -> int:
    """Return how many masked frames to make room for in each clip, known before any draw."""
    if equal_counts <= 1:
        return min(frames, _max_spans(frames, probability, span, min_spans) * span)
    expected = expected_count(frames, probability=probability, span=span, min_spans=min_spans)
    return min(frames, 8 * math.ceil(_HEADROOM * expected / 8))


def expected_count(frames: int, *, probability: float, span: int, min_spans: int) -> float:
    """Return the exact expected number of masked frames of a clip, before counts are equalised."""
    exact = max(float(min_spans), probability * frames / span)
    low = math.floor(exact)
    shares = {low: 1 - (exact - low), low + 1: exact - low}  # of clips, by their number of spans
    return sum(share * covered_frames(frames, span, n) for n, share in shares.items() if share)


def covered_frames(frames: int, span: int, spans: int) -> float:
    """Return the mean size of the union of `spans` spans with distinct starts."""
    starts = frames - span if frames - span > spans else spans + 1
    t = np.arange(frames)
    covering = np.minimum(t, starts - 1) - np.maximum(t - span + 1, 0) + 1  # starts that cover t
    covering = np.clip(covering, 0, None)
    missed = np.ones(frames)
    for drawn in range(spans):  # hypergeometric: no drawn start covers t
        missed *= np.clip((starts - covering - drawn) / (starts - drawn), 0, None)
    return float((1 - missed).sum())
