"""Locks by flock: each ends with its process, however that ends."""

import errno
import fcntl
import sys
import time
from typing import IO

# A Lustre that is mounted without them, NFS without its lock service.
NOT_HERE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
TRIES, PAUSE_S = 3, 0.01  # somebody's look at a lock holds it for a moment only

missing = False  # some file system of this process has none


def wait_for(file: IO) -> None:
    """Lock it; who has it is waited for."""
    _flock(file, fcntl.LOCK_EX)


def take(file: IO, tries: int = TRIES) -> bool:
    """Lock it, unless another process has it; whether it is ours now."""
    for again in range(tries):
        if again:
            time.sleep(PAUSE_S)
        try:
            _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        return True
    return False


def _flock(file: IO, how: int) -> None:
    """Where the file system has no locks, it is said: one process at a time is the user's care."""
    global missing
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
        if not missing:
            print(
                f"{file.name}: this file system has no locks ({error.strerror}); "
                "let no two processes work on the same run or study",
                file=sys.stderr,
                flush=True,
            )
        missing = True
