"""What is written of an encoder's tasks."""

from pathlib import Path

import pytest

from musicssl.probing import report

pytestmark = pytest.mark.usefixtures("few_draws")


def test_results_of_another_encoder_are_not_overwritten(tmp_path: Path) -> None:
    report.save(tmp_path, {"task": "a"}, {"digest": "1", "features": "one"})
    report.save(tmp_path, {"task": "b"}, {"digest": "1", "features": "one"})
    assert list(report.load(tmp_path)["tasks"]) == ["a", "b"]
    with pytest.raises(ValueError, match="is of another encoder"):
        report.save(tmp_path, {"task": "a"}, {"digest": "2", "features": "two"})
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        report.load(tmp_path)
