"""What a trial asks of a cluster: systems in YAML, an experiment's wishes, nothing that a shell takes for code."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, tiny_recipe, write_yaml

from bench.config import load_experiment
from bench.resources import SYSTEMS, request, with_system
from pose.errors import InputError
from slurm.cluster import script
from slurm.request import Refused, Request


def asked(folder: Path, *, ranks: int = 1, device: str = "cpu", facts: str | None = None, **resources: Any) -> Request:
    if facts is not None:
        (folder / "system.yaml").write_text(facts)
        resources["system"] = str(folder / "system.yaml")
    values = tiny_recipe(folder, train={"device": device, "batch_size": ranks, "parallel": {"world_size": ranks}})
    experiment, recipes = load_experiment(write_yaml(folder / "e.yaml", {**values, "resources": resources}))
    return request(recipes["baseline"], with_system(experiment.resources), resumable=True)


@pytest.mark.parametrize(
    ("ranks", "device", "resources", "nodes", "per_node", "gpus"),
    [
        (1, "cpu", {}, 1, 1, 0),
        (4, "cpu", {"nodes": 2}, 2, 2, 0),
        (4, "cpu", {"ranks_per_node": 2, "gpus_per_node": 8}, 2, 2, 0),
        (64, "cuda", {"gpus_per_node": 8}, 8, 8, 1),
        (2, "cuda", {"gpus_per_node": 8}, 1, 2, 1),
        (8, "cuda", {}, 1, 8, 1),
        (8, "auto", {"gpus_per_node": 4}, 2, 4, 1),
        (8, "auto", {"gpus_per_node": 0, "ranks_per_node": 8}, 1, 8, 0),
    ],
)
def test_ranks_are_spread_over_as_few_nodes_as_hold_them(
    tmp_path: Path, ranks: int, device: str, resources: dict[str, Any], nodes: int, per_node: int, gpus: int
) -> None:
    found = asked(tmp_path, ranks=ranks, device=device, **resources)
    assert (found.nodes, found.ranks_per_node, found.gpus_per_rank) == (nodes, per_node, gpus)


def test_the_experiments_wishes_go_before_the_systems_facts(tmp_path: Path) -> None:
    facts = "partition: gpu\naccount: us\ntime: 2-03:04:05\nmodules: [cuda/13]\nsetup: ['export A=1']\n"
    found = asked(tmp_path, facts=facts, partition="other")
    assert (found.partition, found.account, found.minutes) == ("other", "us", 2 * 24 * 60 + 3 * 60 + 5)
    assert found.setup == ("module load cuda/13", "export A=1")


@pytest.mark.parametrize(
    ("style", "gpu_type", "line"),
    [
        ("gpus_per_node", None, "--gpus-per-node=4"),
        ("gpus_per_node", "h100", "--gpus-per-node=h100:4"),
        ("gpus_per_task", "h100", "--gpus-per-task=h100:1"),
        ("gres", None, "--gres=gpu:4"),
        ("gres", "h100", "--gres=gpu:h100:4"),
    ],
)
def test_gpus_are_asked_for_as_the_cluster_wants_it(
    tmp_path: Path, style: str, gpu_type: str | None, line: str
) -> None:
    found = asked(tmp_path, ranks=4, device="cuda", gpu_request=style, gpu_type=gpu_type)
    text = script(found, name="a-1", folder=tmp_path / "jobs", search_path=tmp_path)
    assert f"#SBATCH {line}\n" in text.replace("'", "")
    assert text.count("#SBATCH --g") == 1


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"partion": "gpu"}, "resources.partion: no such key; did you mean resources.partition? (allowed: description"),
        ({"time": "soon"}, "resources.time"),
        ({"time": 0}, "a time limit is at least a minute"),
        ({"partition": "debug\nscancel -u root"}, "resources.partition"),
        ({"partition": "$(touch x)"}, "resources.partition"),
        ({"account": "a'b"}, "resources.account"),
        ({"constraint": "h100;reboot"}, "resources.constraint"),
        ({"modules": ["cuda && true"]}, "resources.modules"),
        ({"gpu_request": "gpus"}, "resources.gpu_request: 'gpus' is none of gpus_per_node, gpus_per_task, gres"),
        ({"system": "nosuch"}, "no such file (known by name: h100x8, mini)"),
        ({"nodes": 3}, "4 ranks cannot be spread evenly over 3 nodes"),
        ({"nodes": 1, "ranks_per_node": 2}, "1 nodes of 2 ranks each (resources.ranks_per_node) do not hold 4"),
    ],
)
def test_wrong_resources_are_refused_in_one_sentence(tmp_path: Path, resources: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        asked(tmp_path, ranks=4, **resources)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_of_a_system_is_refused_with_file_line_and_the_allowed_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        asked(tmp_path, facts="partition: gpu\nqeue: long\n")
    assert f"{tmp_path}/system.yaml:2: qeue: no such key" in str(caught.value)
    assert "allowed: description, partition, account, qos" in str(caught.value)


@pytest.mark.parametrize("path", sorted(SYSTEMS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_system_that_is_shipped_is_valid(tmp_path: Path, path: Path) -> None:
    asked(tmp_path, facts=path.read_text())


@pytest.mark.parametrize("name", ["plain", "with space", "it's", '"quoted"', "$(touch injected)", "`id`", "a;b", "é"])
def test_a_path_is_one_word_for_the_shell_whatever_is_in_it(tmp_path: Path, name: str) -> None:
    folder, code = tmp_path / name / "jobs", tmp_path / name / "code"
    text = script(Request(), name="a-1", folder=folder, search_path=code)
    command = next(line for line in text.splitlines() if line.startswith("srun"))
    assert shlex.split(command)[-1] == str(folder)
    printed = subprocess.run(
        ["bash", "-c", next(line for line in text.splitlines() if "PYTHONPATH" in line) + '\nprintf %s "$PYTHONPATH"'],
        env={},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout == str(code)
    assert not (tmp_path / "injected").exists()


@pytest.mark.parametrize("name", ["a%jb", "a\nscancel -u root", "a\\b", "a\tb"])
def test_a_path_that_sbatch_would_read_as_something_else_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match="Slurm cannot use a path with"):
        script(Request(), name="a-1", folder=tmp_path / name, search_path=tmp_path)


@pytest.mark.parametrize(
    ("config", "trials", "lines"),
    [
        ("slurm_smoke", "4 trials", ["--array=0-3%2", "--nodes=2", "--ntasks-per-node=2", "--requeue"]),
        ("wflw_parity", "32 trials", ["--array=0-31%8", "--gpus-per-node=8", "--ntasks-per-node=8", "--requeue"]),
        ("scaling", "2 alternating measurements", ["--nodes=8", "--gpus-per-node=8", "--exclusive", "--no-requeue"]),
    ],
)
def test_a_dry_run_prints_the_scripts_and_sends_nothing(
    tmp_path: Path, config: str, trials: str, lines: list[str]
) -> None:
    command = [sys.executable, "-m", "bench.run", str(REPOSITORY / f"configs/{config}.yaml"), "--dry-run"]
    run = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
                         capture_output=True, text=True, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert f"### {trials} of " in run.stdout
    for line in lines:
        assert f"#SBATCH {line}\n" in run.stdout
    assert list(tmp_path.iterdir()) == []
