"""One command per workdir: a lock that ends with its holder, however that one dies."""

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from freezejax.errors import UserError

NAME = ".lock"
Holder = dict[str, Any]  # host, pid, boot, since
BEAT, STALE = 10.0, 60.0  # seconds between two signs of life; seconds without one after which a holder counts as dead

held = contextlib.ExitStack()  # what this process holds; `cli.run` closes it when the command ends


def acquire(folder: Path) -> None:
    """Holds the folder for this process until `held` is closed.

    The kernel's lock (flock) ends with its holder, a SIGKILL included: on one machine it tells at once. Between two
    hosts, where some file systems do not pass it on and others keep that of a lost host, the holder's sign of life
    decides: it touches the file every `BEAT` seconds, and counts as dead after `STALE` seconds without.

    Raises:
      UserError: a live process holds the folder; names its host and process number.
      OSError: the folder cannot be written.
    """
    path = folder / NAME
    handle, certain = _open(path)
    try:
        if before := _holder(path):
            if not certain or before["boot"] != _boot():
                _wait_for_sign_of_life(path, before)
            print(f"{folder}: {_told(before)} has died; its place is taken over", flush=True)
        ours = {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot(), "since": time.strftime("%F %T")}
        os.truncate(handle, 0)
        os.write(handle, json.dumps(ours).encode())
    except BaseException:
        os.close(handle)
        raise
    ended = threading.Event()
    threading.Thread(target=_beat, args=(path, ours, ended), daemon=True).start()

    def release() -> None:
        ended.set()
        if _holder(path) == ours:
            path.unlink()
        os.close(handle)

    held.callback(release)


def _open(path: Path) -> tuple[int, bool]:
    """The file with the kernel's lock on it, and whether there is such a lock here."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            certain = True
        except BlockingIOError:
            certain, before = False, _holder(path)
            # Of a lost host a file server may keep the lock for ever, so there the sign of life decides.
            if not before or before["boot"] == _boot():
                os.close(handle)
                raise _in_use(path, before) from None
        except OSError:  # a file system without locks
            certain = False
        with contextlib.suppress(FileNotFoundError):  # the one before us removed the file between the two lines above
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle, certain
        os.close(handle)


def _wait_for_sign_of_life(path: Path, before: Holder) -> None:
    clock = path.with_name(f"{NAME}.{os.getpid()}")  # hosts' clocks differ, so the file system tells the time
    clock.touch()
    first = _touched(path)
    left = STALE - (clock.stat().st_mtime - first)
    clock.unlink()
    if left > 0:
        print(f"{path.parent}: waiting {left:.0f} s for a sign of life of {_told(before)}", flush=True)
    limit = time.monotonic() + left
    while time.monotonic() < limit:
        time.sleep(min(1.0, STALE / 10))
        if _touched(path) != first or _holder(path) != before:
            raise _in_use(path, before)


def _touched(path: Path) -> float:
    with path.open("rb") as file:  # opening it makes a network file system look at its server
        return os.fstat(file.fileno()).st_mtime


def _beat(path: Path, ours: Holder, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            if (now := _holder(path)) not in (ours, {}):
                # This process was stopped for so long that another one took it for dead.
                print(f"error: --workdir={path.parent} was taken over by {_told(now)}", file=sys.stderr, flush=True)
                os._exit(2)
            os.utime(path)


def _holder(path: Path) -> Holder:
    """What the holder wrote; empty where there is none, or what stands there is nothing that a holder writes."""
    try:
        who: Holder = json.loads(path.read_text(encoding="utf-8"))
        return who if {"host", "pid", "boot", "since"} <= who.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _in_use(path: Path, holder: Holder) -> UserError:
    told = _told(holder) if holder else "another process"
    return UserError(f"--workdir={path.parent} is in use by {told}; let that end, or name another folder")


def _told(holder: Holder) -> str:
    return f"process {holder['pid']} on {holder['host']}, started {holder['since']}"


def _boot() -> str:
    """What tells this start of this machine from all others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
