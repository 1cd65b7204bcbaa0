"""Machines without a home, and commands that nobody listens to."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from data_pipelines import machine

ROOT = Path(__file__).parents[2]
# Says 1 on stdout and 2 on stderr, and then which of the first descriptors are open, and whether a
# file that it opens is the terminal of C libraries.
SAYING = """
import os, sys
from data_pipelines import machine
machine.keep_streams()
sys.stdout.write("1"), sys.stderr.write("2")
with open(sys.argv[1], "w") as file:
    file.write("apart" if file.fileno() > 2 else "in the place of a stream")
    os.write(1, b"noise"), os.write(2, b"noise")
"""


def test_a_home_is_written_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of mine")
    assert machine.written_out("~/[x]") == "/home/of mine/[x]"
    assert machine.written_out("a/~b") == "a/~b"
    with pytest.raises(ValueError, match="~nobody-here/x: its home directory is not known"):
        machine.written_out("~nobody-here/x")


def test_any_name_can_be_printed():
    assert machine.shown(Path(os.fsdecode(b"caf\xe9 \xc3\xa9"))) == "caf\\udce9 é"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_nobody_reads_is_dropped(name, monkeypatch):
    """As after `| head`, or where the terminal of a run is gone; a full disk is the other case."""
    reader, writer = os.pipe()
    os.close(reader)
    for descriptor in (writer, os.open("/dev/full", os.O_WRONLY)):
        stream = open(descriptor, "w", encoding="utf-8")  # noqa: SIM115
        with monkeypatch.context() as patch:
            for place in (name, f"__{name}__"):
                patch.setattr(sys, place, stream)
            machine.keep_streams()
            for line in ("a line", "b" * 100_000):
                print(line, file=getattr(sys, name), flush=True)
            for _ in tqdm(range(3), mininterval=0):
                getattr(sys, name).flush()
            getattr(sys, name).close()


def test_what_a_full_disk_does_not_hold_is_told_once(monkeypatch, capfd):
    with open("/dev/full", "w") as stream, monkeypatch.context() as patch:
        for place in ("stdout", "__stdout__"):
            patch.setattr(sys, place, stream)
        machine.keep_streams()
        for _ in range(3):
            print("a result", flush=True)
    assert capfd.readouterr().err == ("some of the output is lost: No space left on device\n")


def test_what_is_read_is_written(monkeypatch, tmp_path):
    with (tmp_path / "out").open("w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "__stdout__", stream)
        handler = logging.StreamHandler(stream)
        patch.setattr(logging.getLogger(), "handlers", [handler])
        machine.keep_streams()
        print(b"caf\xe9 \xc3\xa9".decode("utf-8", "surrogateescape"))
        logging.getLogger().warning("logged")
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # as for noise of decoders
        print("still heard", flush=True)
    assert (tmp_path / "out").read_text("utf-8") == "caf\\udce9 é\nlogged\nstill heard\n"


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-", "2>&-", ""])
def test_streams_that_were_closed_before_the_start(closed, tmp_path):
    """No file takes their place, into which C libraries would then write their noise."""
    shell = f'exec "{sys.executable}" -c "$1" "$2" {closed}'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", SAYING, tmp_path / "file"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "apart"
    assert b"1" in done.stdout or ">&-" in closed
    assert b"2" in done.stderr or "2>&-" in closed
