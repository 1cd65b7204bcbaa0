"""Requests to end: which signals ask, which end at once, and which are left alone."""

import os
import signal
import time
from collections.abc import Iterator

import jax
import pytest

from musicssl.runtime.preemption import Preempted, Preemption
from tests.support import commands

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Give pytest its own handlers back."""
    before = {number: signal.getsignal(number) for number in ASKING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """Send this process a signal, and let its handler run."""
    os.kill(os.getpid(), number)
    for _ in range(100):
        time.sleep(0)


@pytest.mark.parametrize("number", ASKING)
def test_each_asks_at_the_next_step(number, capfd):
    asked = Preemption()
    assert not asked.reached(0)
    asked.poll()
    send(number)
    assert asked.reached(1)
    with pytest.raises(Preempted):
        asked.poll()
    told = "musicssl: asked to end; saving first (Ctrl-C again ends at once)\n"
    assert capfd.readouterr().err == (told if number == signal.SIGINT else "")


def test_one_preemption_may_send_several(capfd):
    asked = Preemption()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        send(number)
    assert asked.reached(1)


def test_what_nohup_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    asked = Preemption()
    send(signal.SIGHUP)
    assert not asked.reached(1)


def busy() -> None:
    """Work that no request ends."""
    asked = Preemption()
    print("ready", flush=True)
    while True:
        if asked.reached(0):
            print("asked", flush=True)
            time.sleep(60)


def test_a_second_ctrl_c_ends_at_once():
    process = commands.Process(busy)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    ended = process.wait(30)
    process.kill()
    assert ended == -signal.SIGINT


def test_of_several_processes_jax_tells_the_others_of_sigterm(monkeypatch):
    """What jax.distributed hears is SIGTERM alone, so the other signals become it."""
    heard = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    asked = Preemption()
    for number in (signal.SIGHUP, signal.SIGINT):
        send(number)
    assert heard == [signal.SIGTERM] * 2 and not asked.asked
