"""Windows of records, and the times of their rows."""

import numpy as np

from musicssl.features import windows
from tests.support.feature_sources import LENGTHS, RATE, SECONDS


def test_windows_drop_short_remainders_and_keep_short_records() -> None:
    cut = windows.cut(np.array([75, 20, 5]), 3, 10)
    assert cut.record.tolist() == [0, 0, 0, 1, 2]
    assert cut.start.tolist() == [0, 30, 60, 0, 0]
    assert cut.samples.tolist() == [30, 30, 15, 20, 5]
    assert windows.cut(np.array([20, 20]), 3, 10).size == 20
    assert windows.cut(np.array([69, 30]), 3, 10).record.tolist() == [0, 0, 1]


def test_windows_are_padded_to_few_lengths() -> None:
    lengths = np.array([400, 101, 7_919, 7_920, 31_679, 31_680, 20_000, 1])
    cut = windows.cut(lengths, 1.98, RATE)
    assert windows.padded(cut).tolist() == [7920, 7920, 7920, 7920, 31680, 31680, 23760, 7920]
    for short in ([700, 300], [300, 200]):  # never less than the stem's window
        cut = windows.cut(np.array(short), 1.98, RATE)
        assert windows.padded(cut).tolist() == [max(short[0], 400), 400]


def test_rows_know_their_times() -> None:
    """Windows of 74 frames; a remainder of 49, and a short record of 53."""
    cut = windows.cut(LENGTHS, SECONDS, RATE)
    rows = windows.rows(cut, 25, RATE)
    assert rows.record.tolist() == [0] * 8 + [1] * 3 + [2] * 9 + [3] * 2
    np.testing.assert_allclose(rows.begin[:8], [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5])
    np.testing.assert_allclose(rows.end[:8], [0.5, 1, 1.48, 2, 2.5, 2.98, 3.5, 3.98])
    assert len(windows.rows(cut, 1, RATE).record) == 6 * 74 + 49 + 53
    assert windows.rows_in(cut, windows.WHOLE).tolist() == [1] * 8


def test_a_row_has_the_frames_that_begin_in_it_or_the_one_that_is_heard() -> None:
    assert windows.parts(windows.WHOLE, 1, 249, 50) == [(0, 249)]
    assert windows.parts(windows.FRAMES, 3, 3, 21.5) == [(0, 1), (1, 2), (2, 3)]
    assert windows.parts(25, 3, 74, 50) == [(0, 25), (25, 50), (50, 74)]
    assert windows.parts(25, 3, 112, 75) == [(0, 38), (38, 75), (75, 112)]
    assert windows.parts(25, 4, 2, 1) == [(0, 1), (1, 2), (1, 2), (1, 2)]  # a frame is two rows


def test_parts_of_a_window_have_the_same_times_at_every_rate() -> None:
    stem = windows.rows(windows.cut(LENGTHS, SECONDS, RATE), 25, RATE)
    for rate, frames in ((24_000, windows.STEM), (22_050, windows.Frames(1024, 1024))):
        lengths = (LENGTHS * rate / RATE).astype(int)
        rows = windows.rows(windows.cut(lengths, SECONDS, rate, frames=frames), 25, rate)
        for found, wanted in zip(rows, stem, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-4)
