"""Several processes that work together, and what becomes of them when one fails."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

import slurm.here
from slurm.call import Call
from slurm.here import run_here

FUNCTIONS = """
import atexit, ctypes, os, signal, subprocess, sys, time
from pathlib import Path

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
         "TORCHELASTIC_USE_AGENT_STORE")
RANK = int(os.environ.get("RANK", 0))

def say_who(argument):
    if RANK:  # after rank 0 has ended
        while not Path(argument, "0").exists():
            time.sleep(0.01)
    print(*(os.environ.get(name) for name in NAMES))
    print("half a line", end="")
    Path(argument, str(RANK)).touch()
    return 0

def deaf(argument):
    "Ends by itself in an hour, and hears no signal until then."
    signal.signal(signal.SIGTERM, lambda *_: None)
    Path(argument, f"deaf{RANK}").write_text(str(os.getpid()))
    ctypes.CDLL(None).sleep(3600)
    while True:
        ctypes.CDLL(None).sleep(3600)

def one_fails(argument):
    how, folder = argument.split(" ", 1)
    if RANK != 1:
        deaf(folder)
    others = [Path(folder, f"deaf{rank}") for rank in range(int(os.environ["WORLD_SIZE"])) if rank != 1]
    while not all(other.exists() and other.read_text() for other in others):
        time.sleep(0.01)
    print("rank 1 was here", flush=True)
    if how == "raise":
        raise ValueError("broken on purpose")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(7)
    return 3

def connected(argument):
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    dist.all_reduce(torch.zeros(1))
    if RANK == 1:
        raise ValueError("broken on purpose")
    try:
        dist.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        Path(argument, f"noticed{RANK}").write_text(str(error))
        time.sleep(1)  # bench.trial does, and longer: connections close a moment before a process has ended
        os._exit(1)

def leave_a_worker_behind(argument):
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    Path(argument, f"worker{RANK}").write_text(str(worker.pid))
    return 0

class Untidy:
    "What is left of it as the interpreter is taken apart aborts the process."
    def __del__(self):
        os.abort()

def end_untidily(argument):
    global left
    left = Untidy()
    atexit.register(Path(argument, f"tidied{RANK}").touch)
    print("done", end="")
    return 0

def save_when_asked(argument):
    def save(*_):
        time.sleep(0.2)
        Path(argument, f"saved{RANK}").touch()
        sys.exit(3)
    signal.signal(signal.SIGTERM, save)
    Path(argument, f"ready{RANK}").touch()
    time.sleep(3600)
"""

LABELS = ("", "[rank 1] ", "[rank 2] ")


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "functions_of_ranks.py").write_text(FUNCTIONS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "functions_of_ranks"


def gone(file: Path) -> bool:
    """Whether the process whose number is in `file` ends soon: it has been killed, which takes the kernel a moment."""
    status = Path(f"/proc/{file.read_text()}/stat")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if "Z" in status.read_text().rpartition(")")[2]:  # dead, and nobody has asked how it ended
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_ranks_are_told_apart_as_torchrun_does_and_so_is_their_output(functions: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    finished = run_here(Call(f"{functions}:say_who", str(tmp_path), log), ranks=3)
    assert (finished.exit_code, finished.signal, finished.rank) == (0, None, None)
    found = re.fullmatch(r"0 0 3 3 127\.0\.0\.1 (\d+) None\nhalf a line", finished.tail)
    assert found
    wanted = [f"{label}{rank} {rank} 3 3 127.0.0.1 {found[1]} None" for rank, label in enumerate(LABELS)]
    assert sorted(log.read_text().splitlines()) == sorted([*wanted, *(f"{label}half a line" for label in LABELS)])


def test_a_rank_that_is_done_cannot_fail_as_its_process_ends(functions: str, tmp_path: Path) -> None:
    finished = run_here(Call(f"{functions}:end_untidily", str(tmp_path), tmp_path / "log"), ranks=2)
    assert (finished.exit_code, finished.signal, finished.tail) == (0, None, "done")
    assert all((tmp_path / f"tidied{rank}").exists() for rank in (0, 1))
    alone = run_here(Call(f"{functions}:end_untidily", str(tmp_path), tmp_path / "log"))
    assert alone.signal == "SIGABRT"  # so the case means something


def test_one_rank_alone_knows_nothing_of_the_launcher_around_it(
    functions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "5")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    finished = run_here(Call(f"{functions}:say_who", str(tmp_path), tmp_path / "log"))
    assert finished.tail == "None None None None None None None\nhalf a line"
    assert finished.rank is None


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("how", "ranks", "code", "killed_by", "last_line"),
    [
        ("raise", 2, 1, None, "ValueError: broken on purpose"),
        ("kill", 3, 137, "SIGKILL", "rank 1 was here"),
        ("exit", 2, 7, None, "rank 1 was here"),
        ("return", 2, 3, None, "rank 1 was here"),
    ],
)
def test_the_rank_that_fails_is_named_and_takes_those_down_that_would_wait_for_it(
    functions: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    ranks: int,
    code: int,
    killed_by: str | None,
    last_line: str,
) -> None:
    monkeypatch.setattr(slurm.here, "FAILURE_GRACE_SECONDS", 0.3)
    log = tmp_path / "log"
    finished = run_here(Call(f"{functions}:one_fails", f"{how} {tmp_path}", log), ranks=ranks)
    assert (finished.rank, finished.exit_code, finished.signal) == (1, code, killed_by)
    assert finished.tail.splitlines()[-1] == last_line
    assert f"[rank 1] {last_line}\n" in log.read_text()
    assert all(gone(tmp_path / f"deaf{rank}") for rank in range(ranks) if rank != 1)


def test_ranks_that_fail_because_another_has_are_not_taken_for_the_cause(functions: str, tmp_path: Path) -> None:
    finished = run_here(Call(f"{functions}:connected", str(tmp_path), tmp_path / "log"), ranks=3)
    assert (finished.rank, finished.exit_code) == (1, 1)
    assert finished.tail.endswith("ValueError: broken on purpose\n")
    for notice in tmp_path.glob("noticed*"):  # one that is slow may have been ended before
        assert "gloo" in notice.read_text()  # by which `bench.trial` knows such an error


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("ranks", [1, 2])
def test_nothing_that_a_rank_started_outlives_it(functions: str, tmp_path: Path, ranks: int) -> None:
    log = tmp_path / "log"
    finished = run_here(Call(f"{functions}:leave_a_worker_behind", str(tmp_path), log), ranks=ranks)
    assert finished.exit_code == 0
    assert all(gone(tmp_path / f"worker{rank}") for rank in range(ranks))


def test_an_interrupted_launcher_gives_every_rank_time_to_save(functions: str, tmp_path: Path) -> None:
    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_here(Call(f"{functions}:save_when_asked", str(tmp_path), tmp_path / "log"), ranks=2)
    thread.join()
    assert {path.name for path in tmp_path.glob("saved*")} == {"saved0", "saved1"}
