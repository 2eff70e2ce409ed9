"""A folder belongs to one run at a time; processes end with the one that started them.

The lock is a POSIX record lock, which the kernel takes back when the process ends,
however it ends, and which forked data workers do not inherit. Over NFS it holds between
machines if the mount has locking: NFSv4 always, NFSv3 with lockd and without the option
``nolock`` or ``local_lock``. After a machine has died its lock stays until the server's
lease has run out (NFSv4, about 90 seconds) or it is up again (NFSv3). Where a file
system has no locks at all the folder cannot be had: an error says so.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LAUNCHER", "FolderInUseError", "end_with_parent", "owned"]

LOCK = ".owner"
LAUNCHER = "VARCON_LAUNCHER_PID"  # set by who starts processes that shall end with it
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class FolderInUseError(Exception):
    """Another process writes to the folder; says which."""


@contextmanager
def owned(folder: str | Path) -> Iterator[Path]:
    """The folder, created if missing, is this process's until the block ends.

    Raises:
        FolderInUseError: it is another's. Nothing has been changed.
        OSError: it cannot be created, written or locked.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                reason = f"{folder} cannot be locked: {os.strerror(error.errno or 0)}"
                raise OSError(error.errno, reason) from error
            raise FolderInUseError(
                f"{folder} is in use by {owner(folder / LOCK)}: stop that first, or "
                "name another folder"
            ) from error
        file.truncate(0)
        about = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        file.write(json.dumps(about))
        file.flush()
        yield folder


def owner(lock: Path) -> str:
    """Who wrote ``lock``, in words."""
    try:
        about = json.loads(lock.read_text())
        return f"process {about['pid']} on {about['host']} since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends.

    On Linux; elsewhere nothing happens. `LAUNCHER` in the environment is the parent's
    number, by which a parent that has ended already is noticed.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.environ.get(LAUNCHER)
    if parent is not None and os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGKILL)
