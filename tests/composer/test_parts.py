import itertools

import numpy as np
import pytest

from data_pipelines.composer import harmony, parts
from data_pipelines.composer.harmony import NO_CHORD, Chord
from data_pipelines.composer.parts import MusicPlan
from data_pipelines.composer.timbres import KIT

LOW, HIGH = 48, 76
WRITERS = [parts.melody, parts.chords, parts.inner]


def _plan(seed: int, meter: int, bars: int = 9) -> MusicPlan:
    """Nine bars of one chord each, the sixth without a chord."""
    rng = np.random.default_rng(seed)
    chords = harmony.progression(rng, seed % 24, bars, "full", sevenths=0.3)
    chords[5] = NO_CHORD
    return MusicPlan(seed % 24, meter, tuple(chord for chord in chords for _ in range(meter)))


def test_spans_are_the_runs_of_a_chord_within_a_bar():
    c, g = Chord(0, "maj"), Chord(7, "maj")
    plan = MusicPlan(0, 4, (c, c, g, g, g, g, g, g))
    assert list(plan.spans()) == [(0, 2, c), (2, 4, g), (4, 8, g)]


@pytest.mark.parametrize("meter", [3, 4])
@pytest.mark.parametrize("write", WRITERS)
def test_parts_stay_in_range_in_time_and_silent_where_there_is_no_chord(write, meter):
    for seed in range(40):
        plan = _plan(seed, meter)
        events = write(np.random.default_rng(seed), plan, LOW, HIGH)
        assert len(events) >= 8
        for event in events:
            assert LOW <= event.pitch < HIGH
            assert 0 <= event.beat < len(plan.chords)
            assert event.length > 0
            assert 0 < event.accent <= 1
            bar_end = (event.beat // meter + 1) * meter
            assert event.beat + event.length <= bar_end + 1e-9
            assert plan.chords[int(event.beat)] != NO_CHORD


@pytest.mark.parametrize("meter", [3, 4])
def test_accompaniment_and_bass_play_the_chord(meter):
    for seed in range(40):
        plan = _plan(seed, meter)
        for write in (parts.chords, parts.inner, parts.bass):
            low, high = (28, 50) if write is parts.bass else (LOW, HIGH)
            for event in write(np.random.default_rng(seed), plan, low, high):
                assert event.pitch % 12 in plan.chords[int(event.beat)].pitch_classes
                assert low <= event.pitch < high


def test_the_bass_has_the_root_where_the_chord_comes_in():
    for seed in range(40):
        plan = _plan(seed, 4)
        events = {e.beat: e for e in parts.bass(np.random.default_rng(seed), plan, 28, 50)}
        for start, _, chord in plan.spans():
            if chord != NO_CHORD:
                assert events[start].pitch % 12 == chord.root


def test_melodies_are_one_voice_in_the_scale_and_return_with_the_form():
    for seed in range(40):
        phrase = harmony.progression(np.random.default_rng(seed), seed % 24, 4, "full", 0.0)
        plan = MusicPlan(seed % 24, 4, tuple(chord for chord in phrase * 4 for _ in range(4)))
        tune = parts.melody(np.random.default_rng(seed), plan, 60, 84)
        for event, following in itertools.pairwise(tune):
            assert event.beat + event.length <= following.beat + 1e-9
        for event in tune:
            assert event.pitch % 12 in harmony.scale(plan.key, plan.chords[int(event.beat)])
        first, second, third = (
            [(e.beat - start, e.pitch) for e in tune if start <= e.beat < start + 16]
            for start in (0, 16, 32)
        )
        assert first == second != third
        assert first[-1][1] % 12 == phrase[-1].root


@pytest.mark.parametrize("meter", [3, 4])
def test_drums_keep_time_all_through(meter):
    for seed in range(40):
        plan = _plan(seed, meter)
        events = parts.drums(np.random.default_rng(seed), plan)
        assert {event.pitch for event in events} <= set(KIT)
        assert all(event.beat * 4 == int(event.beat * 4) for event in events)
        assert {int(event.beat // meter) for event in events} == set(range(9))
