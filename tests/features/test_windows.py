"""Windows of records, and the times of their rows."""

import numpy as np
import pytest

from musicssl.features import windows
from tests.support.feature_sources import LENGTHS, RATE

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_windows_drop_short_remainders_and_keep_short_records() -> None:
    cut = windows.cut(np.array([75, 20, 5]), 3, 10)
    assert cut.record.tolist() == [0, 0, 0, 1, 2]
    assert cut.start.tolist() == [0, 30, 60, 0, 0]
    assert cut.samples.tolist() == [30, 30, 15, 20, 5]
    assert windows.cut(np.array([20, 20]), 3, 10).size == 20
    assert windows.cut(np.array([69, 30]), 3, 10).record.tolist() == [0, 0, 1]


def test_rows_know_their_times() -> None:
    cut = windows.cut(LENGTHS, 1.0, RATE)
    rows = windows.rows(cut, 25, RATE)
    assert rows.record.tolist() == [0] * 4 + [1] * 2 + [2] * 6 + [3]
    np.testing.assert_allclose(rows.begin[:4], [0, 0.5, 1, 1.5])
    np.testing.assert_allclose(rows.end[:4], [0.5, 0.98, 1.5, 1.98])
    assert len(windows.rows(cut, 1, RATE).record) == 6 * 49 + 27
