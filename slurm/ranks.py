"""Processes that work together, each with the number that tells it from the others."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from queue import SimpleQueue

TAIL_LINES = 40
_DRAIN_SECONDS = 5.0  # for the last output, once all that could write any has been killed
_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_TORCHRUNS = "TORCHELASTIC_"  # one of these makes a process look for torchrun's own store


class Rank:
    """A process, started at once: the end of its output, and how it ended.

    Its output goes to `write` line by line. It is put into `ended` as soon as it has: those that end one after the
    other are found there in this order.
    """

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        write: Callable[[bytes], object],
        ended: SimpleQueue[Rank],
    ) -> None:
        self.number = number
        self._lines: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C reaches the launcher alone, which passes it on in order
        )
        self._pump = threading.Thread(target=self._copy, args=(write,), daemon=True)
        self._pump.start()
        self._waiter = threading.Thread(target=self._wait, args=(ended,), daemon=True)
        self._waiter.start()

    @property
    def failed(self) -> bool:
        """Whether it has ended, and not well."""
        return self._process.returncode not in (None, 0)

    @property
    def exit_code(self) -> int:
        """Of a process that has ended; a shell's 128 + number for a signal."""
        code = self._process.returncode
        return code if code >= 0 else 128 - code

    @property
    def signal(self) -> str | None:
        """The name of the signal that killed it."""
        code = self._process.returncode
        return signal.Signals(-code).name if code < 0 else None

    @property
    def tail(self) -> str:
        """The last lines of its output."""
        return b"".join(self._lines).decode(errors="replace")

    def terminate(self) -> None:
        """Ask it to stop: it alone, whose workers have to go on while it saves."""
        self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Until it has ended, or so long."""
        self._waiter.join(timeout=seconds)

    def kill(self) -> None:
        """Kill it and the processes that it started, unless it has ended, and read the last output."""
        if self._waiter.is_alive():
            self._kill_group()
        self._waiter.join()
        self._pump.join(timeout=_DRAIN_SECONDS)

    def _wait(self, ended: SimpleQueue[Rank]) -> None:
        self._process.wait()
        self._kill_group()  # what it left behind; at once, before its number can be another's
        ended.put(self)

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # the latter is macOS's word for a group of zombies
            os.killpg(self._process.pid, signal.SIGKILL)

    def _copy(self, write: Callable[[bytes], object]) -> None:
        assert self._process.stdout is not None
        writable = True
        for line in self._process.stdout:
            self._lines.append(line)
            if writable:
                try:
                    write(line)
                except (OSError, ValueError):  # a full disk, a closed file: must not block the process
                    writable = False


def environments(count: int, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """One environment for each of `count` ranks: `environment` with torchrun's variables.

    One rank alone has none of them, whatever launched this process.
    """
    common = {
        name: value for name, value in environment.items() if name not in _LAUNCHERS and not name.startswith(_TORCHRUNS)
    }
    if count == 1:
        yield common
        return
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    for rank in range(count):
        yield {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def end(ranks: Sequence[Rank], grace: float) -> None:
    """Ask `ranks` to stop, and after `grace` seconds kill those that have not, and whatever they started.

    A process that is inside C code, as in a collective, does not hear the request.
    """
    for rank in ranks:
        rank.terminate()
    deadline = time.monotonic() + grace
    with suppress(KeyboardInterrupt):  # a second Ctrl-C does not wait
        for rank in ranks:
            rank.wait(max(0.0, deadline - time.monotonic()))
    for rank in ranks:
        rank.kill()


def labelled(write: Callable[[bytes], object], rank: int) -> Callable[[bytes], object]:
    """`write` for one of several ranks, of whose lines none may end up within another's; rank 0 has no label."""
    label = b"[rank %d] " % rank if rank else b""
    return lambda line: write(label + line.rstrip(b"\n") + b"\n")


def free_port() -> int:
    """A port of this machine that nobody has now.

    Below those that the system hands out to connections (32768 and more on Linux): one of these may be another
    process's by the time it is used.
    """
    for port in secrets.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(errno.EADDRINUSE, "a hundred ports between 20000 and 32000 are in use")
