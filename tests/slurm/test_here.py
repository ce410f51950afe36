from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from slurm.call import Call
from slurm.here import run_here

FUNCTIONS = """
import os, signal, sys, time

def succeed(argument):
    print("argument", argument, "threads", os.environ["OMP_NUM_THREADS"])
    return 0

def return_three(argument):
    return 3

def raise_error(argument):
    raise RuntimeError("broken on purpose")

def die(argument):
    os.kill(os.getpid(), signal.SIGKILL)

def wait_for_signal(argument):
    def note(*_):
        open(argument, "w").write("saved")
        sys.exit(7)
    signal.signal(signal.SIGTERM, note)
    open(argument + ".ready", "w").write(str(os.getpid()))
    time.sleep(60)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "functions_of_the_test.py").write_text(FUNCTIONS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "functions_of_the_test"


def wait_until(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_the_argument_and_the_environment_reach_the_function(functions: str, tmp_path: Path) -> None:
    argument = "a b; $(touch x) 'quoted'\nline"
    environment = {"OMP_NUM_THREADS": "3"}
    finished = run_here(Call(f"{functions}:succeed", argument, tmp_path / "log", environment))
    assert finished.exit_code == 0
    assert finished.signal is None
    assert (tmp_path / "log").read_text() == f"argument {argument} threads 3\n" == finished.tail


def test_the_return_value_is_the_exit_code(functions: str, tmp_path: Path) -> None:
    assert run_here(Call(f"{functions}:return_three", "", tmp_path / "log")).exit_code == 3


def test_an_exception_ends_in_the_log_and_in_the_tail(functions: str, tmp_path: Path) -> None:
    finished = run_here(Call(f"{functions}:raise_error", "", tmp_path / "log"))
    assert finished.exit_code == 1
    assert finished.tail.endswith("RuntimeError: broken on purpose\n")
    assert "broken on purpose" in (tmp_path / "log").read_text()


def test_a_crash_is_reported_by_its_signal(functions: str, tmp_path: Path) -> None:
    finished = run_here(Call(f"{functions}:die", "", tmp_path / "log"))
    assert finished.signal == "SIGKILL"
    assert finished.exit_code == 128 + signal.SIGKILL


def test_an_interrupted_launcher_asks_the_process_to_stop_and_waits(functions: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def interrupt() -> None:
        wait_until(tmp_path / "marker.ready")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_here(Call(f"{functions}:wait_for_signal", str(marker), tmp_path / "log"))
    thread.join()
    assert marker.read_text() == "saved"


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is a signal on Linux only")
def test_a_killed_launcher_takes_the_process_along(functions: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    script = f"""
from pathlib import Path
from slurm.call import Call
from slurm.here import run_here
run_here(Call("{functions}:wait_for_signal", {str(marker)!r}, Path({str(tmp_path / "log")!r})))
"""
    root = Path(__file__).resolve().parents[2]
    launcher = subprocess.Popen([sys.executable, "-c", script], cwd=root)
    wait_until(tmp_path / "marker.ready")
    launcher.kill()
    launcher.wait()
    wait_until(marker)
    assert marker.read_text() == "saved"
