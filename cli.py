"""How every command speaks to its user: one line for a mistake, the nearest flag, and the exit
status.

0 done, 1 the work failed (disk full, …), 2 the user's mistake, 130 Ctrl-C. No traceback for any of
these.
"""

import argparse
import contextlib
import difflib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import NoReturn

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NO_SUCH_PATH = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
SAID_WITHIN_S = 3.0


class Mistake(ValueError):
    """What the user can put right; the message names the file, key or value, and what to do."""

    said_by_all = True  # every process of a run meets it at the same place, and the first one tells


class Failure(RuntimeError):
    """What went wrong although everything asked for was right: a full disk, a dead server."""

    said_by_all = False  # as for a Mistake


def nearest(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """The `count` known words that look most like `word`; none where nothing is alike."""
    return difflib.get_close_matches(word, list(known), n=count, cutoff=0.5)


def did_you_mean(word: str, known: Iterable[str], count: int = 1) -> str:
    """`; did you mean 'x'?` to end an error message with, or nothing."""
    alike = nearest(word, known, count)
    return f"; did you mean {' or '.join(repr(x) for x in alike)}?" if alike else ""


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake with one line and the nearest flag instead of its usage."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def flags(self) -> set[str]:
        """Every flag of this parser and of its subcommands."""
        found = set()
        for action in self._actions:
            found.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                for sub in action.choices.values():
                    found |= sub.flags()
        return found

    def error(self, message: str):
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            flag = (unknown.split() or ["''"])[0].split("=")[0]
            message = f"unknown argument {flag}{did_you_mean(flag, self.flags())}"
        raise Mistake(f"{message} (`{self.prog} --help` lists everything)")


def run(main: Callable[[list[str]], int | None]) -> None:
    """Call `main` with the command line; turn what it raises into a line and an exit status."""
    status = 0
    try:
        status = main(sys.argv[1:]) or 0
        flush()
    except Mistake as mistake:
        status = _say(mistake, 2, mistake.said_by_all)
    except Failure as failure:
        if isinstance(failure.__cause__, BrokenPipeError):
            _close_output()
        status = _say(failure, 1, failure.said_by_all)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            flush()
        die_of_signal(signal.SIGINT)
    except BrokenPipeError:
        _close_output()  # the reader (`| head`) has seen enough
    except OSError as error:
        if error.errno not in (*DISK_FULL, *NO_SUCH_PATH, errno.EACCES, errno.EROFS):
            raise
        status = 2 if error.errno in NO_SUCH_PATH else 1
        _say(f"{error.filename or 'writing'}: {error.strerror}", status)
    sys.exit(status)


def flush() -> None:
    if sys.stdout:  # none where the caller has closed it
        sys.stdout.flush()


def say_last(*words: str) -> None:
    """On the way out, to whoever still reads."""
    with contextlib.suppress(OSError):
        print(*words, flush=True)


def die_of_signal(number: int) -> NoReturn:
    """As a shell expects of what a signal has ended: it then stops the script that called us, too.
    The first process of a container dies of none; its status says the same.
    """
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def _close_output() -> None:
    """To a reader that has gone; or Python complains at the end of what it could not write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: object, status: int, by_all: bool = False) -> int:
    if by_all and os.environ.get("LOCAL_RANK", "0") != "0":
        # One of several processes, whose first one says the same. torchrun ends all with the first
        # that ends, so let that one speak.
        time.sleep(SAID_WITHIN_S)
        return status
    print(f"error: {message}", file=sys.stderr)
    return status
