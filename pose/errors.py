"""Errors that a user can cause, and how a command reports them."""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

EXIT_INPUT = 2  # the user's input is wrong, or the output cannot be written


class InputError(Exception):
    """Something the user can put right: its text is one sentence that names the file, line or key."""


def refuse(title: str, problems: Sequence[str], shown: int = 20) -> NoReturn:
    """Raise one `InputError` for all of `problems`; `title` says what they were found in.

    One problem makes one sentence, several make a list of at most `shown` lines and a count of the rest.
    """
    if len(problems) == 1:
        raise InputError(f"{title}: {problems[0]}")
    lines = [f"{title}: {len(problems)} problems", *(f"  {problem}" for problem in problems[:shown])]
    if len(problems) > shown:
        lines.append(f"  ... and {len(problems) - shown} more")
    raise InputError("\n".join(lines))


def refuse_any(title: str, problems: Sequence[str]) -> None:
    """Raise one `InputError` for `problems`, if there are any, each of which says itself where it is."""
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        refuse(title, problems)


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command's `main` and exit with its code.

    What a user can put right (`InputError`, a full disk, a folder that cannot be written) is printed as one
    sentence without a traceback, and the exit code is 2; warnings are sentences, too. SIGTERM unwinds like Ctrl-C, so
    that what is half made is removed; a reader that goes away ends the command like the signal it stands for.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to fail
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_INPUT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter fails again as it flushes
        code = 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        code = EXIT_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    finally:
        signal.signal(signal.SIGTERM, before)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End one of several ranks without taking the interpreter apart.

    A thread of gloo's that wants the interpreter's lock meanwhile is ended in a way that aborts the process
    ("terminate called without an active exception", now and then on a busy machine): a rank that has done all its work
    would be taken for one that failed. What was registered to be done at the end is done.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _terminate(*_: Any) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)
