"""Gives what is being written one owner, by a claim that ends with the process that holds it."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

RENEWED_EVERY = 5.0  # seconds
SILENT_AFTER = 45.0  # seconds without a renewal after which another machine is presumed dead
_LOOK_EVERY = 0.5  # seconds between looks of a process that waits
_SAY_EVERY = 10.0  # seconds between its messages
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Claimed(BlockingIOError):
    """Another process is writing; the message names it, its host and when it began."""


Waiting = Callable[[Claimed, float], None]  # takes the owner, and the seconds waited so far


def unsaid(owner: Claimed, seconds: float) -> None:
    """Say nothing while waiting."""


@contextlib.contextmanager
def claim(path: Path, patience: float = 0.0, waiting: Waiting = unsaid) -> Iterator[None]:
    """Hold the claim in file `path`, which is removed at the end.

    The operating system's lock on the file is the claim; the process, host and time that are
    written into it are for people. So the claim of a process that was killed is free at once, even
    if its file is still there. A file server may keep the lock of a machine that is gone, and some
    servers have no locks: there a claim is free when its owner, which should renew it, has not done
    so for SILENT_AFTER seconds.

    Args:
      patience: how many seconds to wait for it if another process has it.
      waiting: called at once and then every ten seconds of that wait, with the owner and the
        seconds waited so far.

    Raises:
      Claimed: another process holds it.
      OSError: the file cannot be written.
    """
    descriptor = _taken_within(path, patience, waiting)
    ended, held = threading.Event(), threading.Lock()
    threading.Thread(target=_renew, args=(descriptor, ended, held), daemon=True).start()
    try:
        _sign(descriptor)
        yield
    finally:
        with held:
            ended.set()
            if _is_of(path, descriptor):
                path.unlink(missing_ok=True)  # while locked: later it could be the next owner's
            os.close(descriptor)


def _taken_within(path: Path, patience: float, waiting: Waiting) -> int:
    """Take the claim, as soon as it is free; return the file's descriptor."""
    began = time.monotonic()
    said = -_SAY_EVERY
    while True:
        try:
            return _taken(path)
        except Claimed as other:
            seconds = time.monotonic() - began
            if seconds >= patience:
                raise
            if seconds >= said + _SAY_EVERY:
                said = seconds
                waiting(other, seconds)
        time.sleep(_LOOK_EVERY)


def _taken(path: Path) -> int:
    """Take the claim, if it is free; return the file's descriptor."""
    while True:
        is_new = is_own = True
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            is_new = False
            try:
                descriptor, is_own = _opened(path)
            except FileNotFoundError:  # it was removed in between
                continue
        try:
            other = _owner(path, descriptor, is_new)
            if other:
                raise other
            if _is_of(path, descriptor):
                if is_own:
                    return descriptor
                path.unlink(missing_ok=True)  # left by a dead process of another user
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner has removed it since it was opened


def _opened(path: Path) -> tuple[int, bool]:
    """Open the file of a claim; return its descriptor, and whether it may be written."""
    try:
        return os.open(path, os.O_RDWR), True
    except PermissionError:
        return os.open(path, os.O_RDONLY), False


def _owner(path: Path, descriptor: int, is_new: bool) -> Claimed | None:
    """Lock an open claim; return who holds it, or None if it is now locked or its owner is gone.

    The file of an owner that is gone is removed if the lock cannot be had.
    """
    try:
        _lock(descriptor)
        return None
    except OSError as error:
        if error.errno in _NO_LOCKS and is_new:
            return None
        if error.errno not in (*_HELD, *_NO_LOCKS):
            raise
        words, of_machine = said(os.pread(descriptor, 1000, 0))
        is_here = error.errno in _HELD and of_machine == machine()
    if is_here or _silence(path, descriptor) < SILENT_AFTER:
        return Claimed(words)
    if _is_of(path, descriptor):
        path.unlink(missing_ok=True)
    return None


def _lock(descriptor: int) -> None:
    """Lock a file, or raise OSError at once; a file server locks only files that may be written.

    A shared lock cannot be had either while an owner lives.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def machine() -> str:
    """Return what identifies this machine; containers on one machine share it."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return socket.gethostname()


def _sign(descriptor: int) -> None:
    """Write down who holds a claim."""
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps(signature()).encode())


def signature() -> dict[str, int | str]:
    """Return what a claim says about this process."""
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    host = socket.gethostname()
    return {"process": os.getpid(), "host": host, "since": since, "machine": machine()}


def said(content: bytes) -> tuple[str, str]:
    """Return the owner named in a claim, in words, and the owner's machine."""
    try:
        owner = json.loads(content)
        words = f"process {owner['process']} on {owner['host']} since {owner['since']}"
        return words, owner.get("machine", "")
    except (ValueError, KeyError, TypeError, AttributeError):  # the claim is only half written yet
        return "another process", ""


def _renew(descriptor: int, ended: threading.Event, held: threading.Lock) -> None:
    """Renew a claim again and again; the descriptor stays open while `held` can be locked."""
    while not ended.wait(RENEWED_EVERY):
        with held, contextlib.suppress(OSError):
            if not ended.is_set():
                os.utime(descriptor)


def _silence(path: Path, descriptor: int) -> float:
    """Return the seconds since a claim was renewed, by the clock of the file system."""
    with tempfile.TemporaryFile(dir=path.parent) as new:
        return os.fstat(new.fileno()).st_mtime - os.fstat(descriptor).st_mtime


def _is_of(path: Path, descriptor: int) -> bool:
    """Return whether an open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
