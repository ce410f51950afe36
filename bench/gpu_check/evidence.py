"""What the parts of a GPU check have left in its folder.

tasks.json            for which code and GPU it is, and how its parts ended
tests.xml             of the tests that run on a GPU (pytest's JUnit form)
numerics.json         `bench.gpu_check.numerics`
memcheck.json racecheck.json    `bench.gpu_check.memory_check`
losses/               `bench.kernels`
throughput/           configs/gpu_throughput.yaml
crops.json            `bench.gpu_check.crop_speed`
profile-VARIANT.json  `bench.gpu_check.step_profile`
time_to_nme/          configs/time_to_nme.yaml
parity/               configs/gpu_parity.yaml
logs/                 all that they printed
gpu_check.json        all of it in one file, and the figures beside their targets
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.experiment import CONFIG, Experiment, read_experiment
from bench.gpu_check.memory_check import TOOLS
from bench.gpu_check.result import Crops, Ledger, MemoryCheck, Numerics, StepProfile, TestOutcomes
from bench.kernels.result import KERNELS, KernelResult, read_kernel_result
from bench.result import Record, read_record
from pose.errors import InputError

LEDGER = "tasks.json"
TESTS, NUMERICS, CROPS = "tests.xml", "numerics.json", "crops.json"
LOSSES, THROUGHPUT, TIME_TO_NME, PARITY = "losses", "throughput", "time_to_nme", "parity"

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Evidence:
    """None, or nothing, where a part has not come to its end."""

    tests: TestOutcomes | None
    numerics: Numerics | None
    memory: tuple[MemoryCheck, ...]
    kernels: KernelResult | None
    crops: Crops | None
    profiles: tuple[StepProfile, ...]
    throughput: Experiment | None
    time_to_nme: Experiment | None
    parity: Experiment | None


def read_evidence(out: Path) -> Evidence:
    """Raises `InputError` naming a file that is there and cannot be believed."""
    profiles = (_record(path, StepProfile) for path in sorted(out.glob("profile-*.json")))
    memory = (_record(out / f"{tool}.json", MemoryCheck) for tool in TOOLS)
    kernels = out / LOSSES / KERNELS
    return Evidence(
        tests=read_tests(out / TESTS) if (out / TESTS).exists() else None,
        numerics=_record(out / NUMERICS, Numerics),
        memory=tuple(one for one in memory if one is not None),
        kernels=read_kernel_result(kernels) if kernels.exists() else None,
        crops=_record(out / CROPS, Crops),
        profiles=tuple(one for one in profiles if one is not None),
        throughput=_experiment(out / THROUGHPUT),
        time_to_nme=_experiment(out / TIME_TO_NME),
        parity=_experiment(out / PARITY),
    )


def read_ledger(out: Path) -> Ledger | None:
    """None for a folder in which no check was begun."""
    return _record(out / LEDGER, Ledger)


def profile_file(variant: str) -> str:
    return f"profile-{variant}.json"


def read_tests(path: Path) -> TestOutcomes:
    """Outcomes from pytest's JUnit form. Raises `InputError` for a file that is none."""
    try:
        root = ElementTree.parse(path).getroot()
        suites = root.findall("testsuite") if root.tag == "testsuites" else [root]
        seconds = sum(float(suite.get("time", "0")) for suite in suites)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path}: not the result of a pytest run ({error})") from None
    cases = list(root.iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    names = sorted({f"{case.get('classname', '')}.{case.get('name', '')}" for case in failed})
    passed = len(cases) - len(failed) - skipped
    return TestOutcomes(passed=passed, skipped=skipped, failed=names, seconds=seconds)


def _record(path: Path, kind: type[R]) -> R | None:
    return read_record(path, kind) if path.exists() else None


def _experiment(folder: Path) -> Experiment | None:
    return read_experiment(folder) if (folder / CONFIG).exists() else None
