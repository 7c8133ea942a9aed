"""How a failure is told to the person at the terminal: one line on stderr and an exit code."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

DONE, FAILED, USAGE, SOME_ROWS_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


class UsageError(ValueError):
    """The command line itself is wrong: to run it again changes nothing before somebody writes it otherwise."""


@contextmanager
def usage() -> Iterator[None]:
    """A ValueError from inside is about what was written on the command line: it becomes a `UsageError`."""
    try:
        yield
    except ValueError as error:
        raise UsageError(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """The error as one line: an OSError as "No such file or directory: x", anything else as its message."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def report(error: BaseException, debug: bool) -> int:
    """Prints `error` to stderr (with its traceback when debugging) and returns the exit code.

    ValueError and OSError are the user's to act on, a `UsageError` by writing the command otherwise (exit code 2);
    anything else is a defect of ours, so its type is named.
    """
    if debug:
        traceback.print_exception(error)
    elif isinstance(error, (ValueError, OSError)):
        print(f"mmvl: {one_line(error)}", file=sys.stderr)
    else:
        print(f"mmvl: unexpected {type(error).__name__}: {one_line(error)} (MMVL_DEBUG=1 shows where)", file=sys.stderr)
    return USAGE if isinstance(error, UsageError) else FAILED


def debugging() -> bool:
    return os.environ.get("MMVL_DEBUG", "") not in ("", "0")
