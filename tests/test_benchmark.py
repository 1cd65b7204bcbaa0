"""The command that times a step."""

from tests.support import commands


def test_a_row_that_does_not_exist_is_refused():
    arguments = "--config=configs/music2vec.py:demo", "--only=step,stemm"
    process = commands.Process(commands.module, "musicssl.benchmark", *arguments)
    output, errors = process.communicate()
    assert (process.returncode, output) == (2, "")
    assert errors.startswith("musicssl: --only=stemm: use some of step, stem, positional")
