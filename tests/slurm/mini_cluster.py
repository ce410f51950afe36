"""A throw-away SLURM cluster for tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from conftest import REPOSITORY

SCRIPT = REPOSITORY / "slurm" / "mini_cluster.sh"
PORTS = 120
T = TypeVar("T")


def why_not() -> str | None:
    """Why no cluster can be started here, None if one can."""
    if os.geteuid() != 0:
        return "a throw-away SLURM cluster needs root"
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [tool for tool in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(tool, path=path) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)} missing): make slurm-packages"
    apart = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "true"]
    if subprocess.run(apart, capture_output=True, check=False).returncode != 0:
        return "this machine does not let a node have processes of its own (unshare)"
    return None


class MiniCluster:
    """Two nodes. `environment` is that of a shell that sees them."""

    def __init__(self, worker: int = 0, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        names = {"MINI_SLURM_DIR": str(self.folder), "MINI_SLURM_PORT": str(_free_ports(worker)), **settings}
        self.environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", **names}
        self._script("start")
        self.environment["SLURM_CONF"] = str(self.folder / "slurm.conf")

    def run(self, *command: str, check: bool = True) -> str:
        """What a command prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
        return done.stdout

    def jobs(self) -> dict[str, str]:
        """States of all jobs that the controller knows, by id."""
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T").splitlines()
        return dict(line.split("|") for line in lines)

    def alive(self) -> list[str]:
        return self.run("squeue", "-h", "-r", "-o", "%i").split()

    def kill_node(self, node: str) -> None:
        self._script("kill-node", node)

    def start_node(self, node: str) -> None:
        self._script("start-node", node)

    def wait_for(self, what: Callable[[], T], seconds: float) -> T:
        """The first value of `what` that counts as true."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            if time.monotonic() > deadline:
                squeue = self.run("squeue", "-t", "all", check=False)
                raise AssertionError(f"not within {seconds} s\n{squeue}\n{self.run('sinfo', '-N', check=False)}")
            time.sleep(0.1)
        return found

    def clear(self) -> None:
        """End all jobs and put all nodes back."""
        self.run("scancel", "-u", "root", check=False)
        for node in ("node1", "node2"):
            self.start_node(node)
        self.wait_for(lambda: not self.alive(), 60)
        self.wait_for(lambda: self.run("sinfo", "-h", "-p", "debug", "-t", "idle", "-o", "%D").strip() == "2", 60)

    def stop(self) -> None:
        self._script("stop")

    def _script(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(SCRIPT), *arguments], env=self.environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout


def _free_ports(worker: int) -> int:
    """The first of so many ports that nobody listens on; workers of one test run look in places of their own."""
    for base in range(12_000 + worker * 1000, 13_000 + worker * 1000, PORTS):
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", base + 17))
                other.bind(("127.0.0.1", base + 101))
            except OSError:
                continue
            return base
    raise AssertionError("no free ports")
