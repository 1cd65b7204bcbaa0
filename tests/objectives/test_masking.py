"""Span masks against an independent NumPy sampler of fairseq's rule and the figures it measured."""

import functools
import itertools

import jax
import numpy as np
import pytest

from musicssl.objectives import masking

DEFAULTS = {"probability": 0.65, "span": 10, "min_spans": 1, "equal_counts": 0}
jit = functools.partial(jax.jit, static_argnums=(1, 2), static_argnames=DEFAULTS)
span_mask = jit(masking.span_mask)
mask_alone = jit(lambda *sizes, **rule: masking.span_mask(*sizes, **rule).mask)


def reference_masks(
    seed: int, clips: int, frames: int, probability: float, span: int, least: int, group: int
) -> np.ndarray:
    """bool [b, t] drawn clip by clip, as fairseq's data_utils.compute_mask_indices is described."""
    rng = np.random.default_rng(seed)
    masked = []
    for _ in range(clips):
        spans = max(least, int(probability * frames / span + rng.random()))
        starts = frames - span if frames - span > spans else spans + 1
        begun = rng.choice(starts, spans, replace=False)
        covered = set()
        for start in begun:
            covered.update(range(start, min(frames, start + span)))
        masked.append(covered)
    for first in range(0, clips, group or clips):
        if not group:
            break
        smallest = min(len(clip) for clip in masked[first : first + group])
        for i in range(first, first + group):
            masked[i] = set(rng.choice(sorted(masked[i]), smallest, replace=False))
    return np.array([np.isin(np.arange(frames), sorted(clip)) for clip in masked])


def draw(clips: int, frames: int, seed: int = 0, **rule) -> masking.SpanMask:
    drawn = span_mask(jax.random.key(seed), clips, frames, **DEFAULTS | rule)
    return jax.tree.map(np.asarray, drawn)


def masks(clips: int, frames: int, seed: int = 0, **rule) -> np.ndarray:
    """bool [b, t]; the places of masked frames take a sort more."""
    return np.asarray(mask_alone(jax.random.key(seed), clips, frames, **DEFAULTS | rule))


def mean_run(mask: np.ndarray) -> float:
    """Masked frames over maximal runs of masked frames."""
    padded = np.pad(mask, ((0, 0), (1, 0)))  # [b, 1 + t]
    return mask.sum() / (padded[:, 1:] & ~padded[:, :-1]).sum()


# frames, probability, span, min_spans, then fraction and mean run with counts made equal among 8
# clips, and without: 2,000 draws of fairseq's own sampler.
MEASURED = [
    (1499, 0.65, 10, 1, (0.466, 8.9), (0.490, 14.7)),
    (1499, 0.50, 10, 1, (0.381, 8.2), (0.402, 13.4)),
    (1499, 0.80, 10, 2, (0.541, 9.7), (0.566, 16.2)),
    (1499, 0.65, 5, 1, (0.486, 6.4), (0.502, 7.7)),
    (1499, 0.65, 15, 1, (0.457, 9.7), (0.486, 21.7)),
    (249, 0.65, 10, 1, (0.432, 5.7), (0.493, 14.6)),
]


@pytest.mark.parametrize("frames, probability, span, least, equal, whole", MEASURED)
def test_fraction_and_runs_are_those_of_fairseq(frames, probability, span, least, equal, whole):
    for group, (fraction, run) in ((8, equal), (0, whole)):
        mask = masks(
            640, frames, probability=probability, span=span, min_spans=least, equal_counts=group
        )
        assert mask.mean() == pytest.approx(fraction, abs=0.003)
        assert mean_run(mask) == pytest.approx(run, rel=0.03)


@pytest.mark.parametrize("group", [0, 8])
def test_each_frame_and_each_count_is_as_likely_as_in_the_reference(group):
    clips, frames = 8000, 60
    ours = masks(clips, frames, probability=0.6, span=7, equal_counts=group)
    theirs = reference_masks(1, clips, frames, 0.6, 7, 1, group)
    assert ours[:, 0].mean() < ours[:, 30].mean() - 0.2  # fewer spans reach the first frames
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.035)
    counts = [np.bincount(mask.sum(1), minlength=frames) / clips for mask in (ours, theirs)]
    np.testing.assert_allclose(counts[0].cumsum(), counts[1].cumsum(), atol=0.04)
    assert counts[0].max() < 0.5  # there is a distribution to compare


def test_neighbouring_frames_hang_together_as_in_the_reference():
    clips, frames = 8000, 60
    rule = {"probability": 0.6, "span": 7, "equal_counts": 0}
    ours = masks(clips, frames, **rule)
    theirs = reference_masks(1, clips, frames, 0.6, 7, 1, 0)
    for lag in (1, 3, 6, 7, 20):
        together = [(mask[:, lag:] & mask[:, :-lag]).mean() for mask in (ours, theirs)]
        assert together[0] == pytest.approx(together[1], abs=0.012)


def test_last_frame_is_never_masked():
    mask = masks(4000, 60)
    assert not mask[:, -1].any()
    assert mask[:, -2].any()


def test_range_of_starts_widens_for_a_clip_full_of_spans():
    """12 frames, spans of 10: 2 starts are too few for 2 spans, so 3 starts are drawn from."""
    mask = masks(4000, 12, probability=1.6, min_spans=2)
    theirs = reference_masks(1, 4000, 12, 1.6, 10, 2, 0)
    np.testing.assert_allclose(mask.mean(0), theirs.mean(0), atol=0.04)
    assert mask[:, -1].any()


def test_min_spans():
    mask = masks(500, 100, probability=0.01, span=5, min_spans=2)
    counts = mask.sum(1)
    assert counts.min() == 6 and counts.max() == 10  # two distinct starts overlap in 4 at most
    assert masks(500, 100, probability=0.01, span=5, min_spans=1).sum(1).tolist() == [5] * 500


@pytest.mark.parametrize("group", [2, 12])
def test_counts_are_equal_within_each_group_and_not_between_groups(group):
    mask = masks(24, 200, equal_counts=group)
    counts = mask.sum(1).reshape(-1, group)
    assert (counts == counts[:, :1]).all()
    assert len(np.unique(counts)) > 1
    whole = masks(24, 200)
    assert (mask <= whole).all()  # made equal by unmasking alone
    fewest = whole.sum(1).reshape(-1, group).min(1)
    room = masking.mask_capacity(200, probability=0.65, span=10, min_spans=1, equal_counts=group)
    np.testing.assert_array_equal(counts[:, 0], np.minimum(fewest, room))


@pytest.mark.parametrize("rule", [{}, {"equal_counts": 1}, {"equal_counts": 8}, {"min_spans": 9}])
def test_frames_and_valid_list_the_mask(rule):
    drawn = draw(64, 130, **rule)
    capacity = masking.mask_capacity(130, **DEFAULTS | rule)
    assert drawn.frames.shape == drawn.valid.shape == (64, capacity)
    for mask, frames, valid in zip(*drawn, strict=True):
        assert len(set(frames)) == capacity
        assert sorted(frames[valid]) == np.flatnonzero(mask).tolist()


@pytest.mark.parametrize("frames, span, spans", [(9, 3, 2), (12, 4, 3), (8, 2, 5), (7, 3, 4)])
def test_covered_frames_is_the_mean_over_all_choices_of_starts(frames, span, spans):
    starts = frames - span if frames - span > spans else spans + 1
    sizes = [
        len({t for s in chosen for t in range(s, min(frames, s + span))})
        for chosen in itertools.combinations(range(starts), spans)
    ]
    assert masking.covered_frames(frames, span, spans) == pytest.approx(np.mean(sizes), rel=1e-12)


@pytest.mark.parametrize(
    "frames, probability, span, least", [(1496, 0.65, 10, 1), (256, 0.8, 10, 2), (40, 0.1, 10, 3)]
)
def test_expected_count_is_the_mean_of_many_draws(frames, probability, span, least):
    rule = {"probability": probability, "span": span, "min_spans": least}
    counts = masks(1000, frames, **rule).sum(1)
    exact = masking.expected_count(frames, **rule)
    assert abs(counts.mean() - exact) < 4 * counts.std() / np.sqrt(len(counts))


@pytest.mark.parametrize("frames, group", [(1496, 7), (256, 47), (128, 8)])
def test_room_for_equal_counts_practically_never_binds(frames, group):
    """All clips of a group must exceed it at once: bound that by one clip's chance."""
    counts = masks(600, frames).sum(1)
    room = masking.mask_capacity(frames, probability=0.65, span=10, min_spans=1, equal_counts=group)
    assert room < counts.max()  # smaller than what whole spans need
    assert np.mean(counts > room) ** group < 1e-4


def test_masks_depend_on_the_key_alone():
    np.testing.assert_array_equal(masks(8, 100), masks(8, 100))
    assert (masks(8, 100) != masks(8, 100, seed=1)).any()


def test_the_traced_program_does_not_grow_with_the_batch_or_the_clip():
    def size(clips: int, frames: int) -> int:
        def sample(key: jax.Array) -> masking.SpanMask:
            rule = {"probability": 0.65, "span": 10, "min_spans": 1, "equal_counts": 8}
            return masking.span_mask(key, clips, frames, **rule)

        return str(jax.make_jaxpr(sample)(jax.random.key(0))).count(" = ")  # equations, all levels

    assert size(8, 100) == size(800, 100) == size(8, 1496) > 20


def test_refusals_name_the_field():
    with pytest.raises(ValueError, match=r"mask\.equal_counts is 7 and does not divide .* 16"):
        draw(16, 100, equal_counts=7)
    with pytest.raises(ValueError, match=r"mask\.probability 2\.0 .* 8 frames.*crop_frames"):
        draw(4, 8, probability=2.0, span=1)
    with pytest.raises(ValueError, match=r"mask\.span 0"):
        draw(4, 100, span=0)


BLOCKS = {"copies": 4, "probability": 0.5, "span": 5, "adjust": 0.05, "inverse": False}
block_mask = functools.partial(jax.jit, static_argnums=(1, 2), static_argnames=BLOCKS)(
    masking.block_mask
)


def draw_blocks(clips: int, frames: int, seed: int = 0, **rule) -> masking.SpanMask:
    drawn = block_mask(jax.random.key(seed), clips, frames, **BLOCKS | rule)
    return jax.tree.map(np.asarray, drawn)


# frames, probability, span, adjust, inverse, then masked frames of each copy, mean runs of masked
# and of visible frames: 2,000 draws of fairseq's compute_block_mask_1d.
MEASURED_BLOCKS = [
    (1488, 0.5, 5, 0.05, False, 744, 4.45, 4.44),
    (1488, 0.5, 5, 0.05, True, 744, 4.43, 4.43),
    (1488, 0.8, 10, 0.1, True, 1191, 13.89, 3.50),
    (249, 0.65, 10, 0.0, False, 161, 4.95, 2.71),
    (96, 0.5, 4, 0.05, False, 48, 3.92, 3.84),
]


@pytest.mark.parametrize(
    "frames, probability, span, adjust, inverse, count, masked_run, visible_run", MEASURED_BLOCKS
)
def test_blocks_have_the_counts_and_runs_of_fairseqs(
    frames, probability, span, adjust, inverse, count, masked_run, visible_run
):
    rule = {"probability": probability, "span": span, "adjust": adjust, "inverse": inverse}
    drawn = draw_blocks(64, frames, **rule)
    assert drawn.mask.shape == drawn.frames.shape == (64, 4, frames)
    assert set(drawn.mask.sum(-1).flat) == {count}
    assert masking.masked_in_copy(frames, probability, inverse) == count
    rows = drawn.mask.reshape(-1, frames)
    assert mean_run(rows) == pytest.approx(masked_run, rel=0.05)
    assert mean_run(~rows) == pytest.approx(visible_run, rel=0.05)
    assert len({row.tobytes() for row in rows}) == len(rows)  # a mask of its own for every copy


@pytest.mark.parametrize("span, adjust, probability", [(5, 0.05, 0.5), (4, 0.6, 0.3), (1, 0, 0.4)])
@pytest.mark.parametrize("inverse", [False, True])
def test_a_block_mask_is_what_its_draws_give_by_the_published_rule(
    span, adjust, probability, inverse
):
    """Block by block and frame by frame, from the numbers that were drawn."""
    clips, frames, copies = 3, 60, 4
    rule = {"span": span, "adjust": adjust, "probability": probability, "inverse": inverse}
    drawn = draw_blocks(clips, frames, seed=7, **rule)
    share = 1 - probability if inverse else probability
    wanted, blocks = int(frames * share), int(frames * ((share + adjust) / span))
    keys = jax.random.split(jax.random.key(7))
    centres = jax.random.randint(keys[0], (clips, copies, blocks, 1), 0, frames)[..., 0]
    order = np.asarray(jax.random.uniform(keys[1], (clips, copies, frames)))
    added = taken = 0
    for clip, copy in itertools.product(range(clips), range(copies)):
        covered = set()
        for centre in np.asarray(centres[clip, copy]):
            block = range(centre - span // 2, centre - span // 2 + span)
            covered |= {min(max(frame, 0), frames - 1) for frame in block}
        by_draw = sorted(range(frames), key=lambda t, x=order[clip, copy]: x[t])
        surplus = len(covered) - wanted
        added, taken = added + (surplus < 0), taken + (surplus > 0)
        # the frames of lowest number stay, and join
        chosen = {t for t in by_draw if t in covered}
        if surplus > 0:
            chosen = set([t for t in by_draw if t in covered][:wanted])
        chosen |= set([t for t in by_draw if t not in covered][: max(0, -surplus)])
        expected = np.isin(np.arange(frames), sorted(chosen)) ^ inverse
        np.testing.assert_array_equal(drawn.mask[clip, copy], expected)
    assert (taken if adjust > 0.5 else added) > 0


@pytest.mark.parametrize("inverse", [False, True])
def test_masked_frames_are_listed_before_the_visible_and_all_in_order(inverse):
    drawn = draw_blocks(2, 50, probability=0.3, inverse=inverse)
    for mask, frames, valid in zip(*(x.reshape(8, 50) for x in drawn), strict=True):
        count = mask.sum()
        np.testing.assert_array_equal(frames[:count], np.flatnonzero(mask))
        np.testing.assert_array_equal(frames[count:], np.flatnonzero(~mask))
        np.testing.assert_array_equal(valid, np.arange(50) < count)


def test_block_masks_depend_on_the_key_alone():
    masks_twice = draw_blocks(8, 100).mask, draw_blocks(8, 100).mask
    np.testing.assert_array_equal(*masks_twice)
    assert (masks_twice[0] != draw_blocks(8, 100, seed=1).mask).any()


def test_a_section_with_copies_draws_blocks():
    for rule, shape in ((BLOCKS, (2, 4, 50)), (DEFAULTS, (2, 50))):
        sample = functools.partial(masking.draw, clips=2, frames=50, **rule)
        assert jax.eval_shape(sample, jax.random.key(0)).mask.shape == shape


@pytest.mark.parametrize(
    "rule, said",
    [
        ({"copies": 0}, r"mask\.copies is 0"),
        ({"span": 0}, r"mask\.span 0"),
        ({"span": 101}, r"mask\.span 101 .* 100 frames: use a longer data\.crop_frames"),
        ({"probability": 1.0}, r"mask\.probability 1\.0"),
        ({"probability": 0.001}, r"mask\.probability 0\.001"),
        ({"adjust": -0.9}, r"mask\.adjust -0\.9"),
    ],
)
def test_block_refusals_name_the_field(rule, said):
    with pytest.raises(ValueError, match=said):
        masking.block_mask(jax.random.key(0), 4, 100, **BLOCKS | rule)
