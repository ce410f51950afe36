"""Which package may import which, and what a command's --help may load."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("bench", "kernels", "pose", "slurm")
BELOW = {"bench": {"pose", "slurm", "kernels"}, "pose": {"kernels"}, "slurm": set(), "kernels": set()}
COMMANDS = (
    "bench.run",
    "bench.report",
    "bench.parity",
    "bench.compare",
    "bench.validate",
    "bench.kernels",
    "bench.gpu_check",
    "bench.gpu_check.numerics",
    "bench.gpu_check.memory_check",
    "bench.gpu_check.crop_speed",
    "bench.gpu_check.step_profile",
    "pose.prepare",
    "pose.train",
    "pose.evaluate",
    "pose.predict",
    "pose.data.synthetic",
)
HEAVY = ("torch", "numpy", "pydantic", "yaml", "rich", "matplotlib", "PIL", "scipy", "triton")


def imported_packages(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_only_go_down(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        ours = imported_packages(file) & set(PACKAGES) - {package}
        assert ours <= BELOW[package], f"{file.relative_to(ROOT)} imports {ours - BELOW[package]}"


def imported_files(file: Path, files: set[Path]) -> set[Path]:
    """The project's files that `file` imports, in functions, too; not those for types alone."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in names} & files


def test_no_files_import_each_other() -> None:
    files = {file for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    sorted_ = TopologicalSorter({file: imported_files(file, files) for file in files})
    sorted_.prepare()  # CycleError names the circle
    assert sorted_.is_active()


def test_kernels_needs_torch_and_triton_alone() -> None:
    allowed = set(sys.stdlib_module_names) | {"torch", "triton", "kernels"}
    for file in sorted((ROOT / "kernels").rglob("*.py")):
        assert imported_packages(file) <= allowed, file.name


def modules_after(code: str) -> set[str]:
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavier_than_argparse(command: str) -> None:
    code = f"""
import runpy
sys.argv = [{command!r}, "--help"]
try:
    runpy.run_module({command!r}, run_name="__main__")
except SystemExit as end:
    assert end.code == 0
"""
    loaded = modules_after(code)
    assert "argparse" in loaded
    assert not {name.split(".")[0] for name in loaded} & set(HEAVY)


def test_importing_kernels_does_not_import_the_rest() -> None:
    loaded = {name.split(".")[0] for name in modules_after("import kernels")}
    assert "kernels" in loaded
    assert not loaded & {"bench", "pose", "slurm"}


def test_judging_and_reporting_do_not_load_torch() -> None:
    assert "torch" not in modules_after("import bench.report, bench.experiment, bench.gates, bench.config, bench.plan")
