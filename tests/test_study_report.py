"""The command that writes a study's page."""

from tests.support import commands


def test_no_study_is_refused_in_a_line(tmp_path):
    process = commands.Process(commands.module, "musicssl.study_report", f"--workdir={tmp_path}")
    _, errors = process.communicate()
    assert process.returncode == 2 and errors.count("\n") == 1
    assert "study.json does not exist: launch/study.py writes it" in errors
