"""Check that results are what the schemas say: `python -m bench.validate PATH...`.

A PATH is an experiment's folder, all of whose files are looked at, or a single record.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pose.errors import InputError, run_command

if TYPE_CHECKING:
    from bench.result import Record

EXIT_PROBLEM = 1


def problems_of(path: Path) -> list[str]:
    """What is wrong with an experiment's folder or a record, a sentence each. `InputError` where it is neither."""
    from bench.experiment import CONFIG

    if path.is_dir():
        if not (path / CONFIG).exists():
            raise InputError(f"{path}: not the folder of an experiment (it has no {CONFIG})")
        return list(_of_experiment(path))
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    kind = _kinds().get(path.name)
    if kind is None:
        raise InputError(f"{path}: not a record by its name ({', '.join(_kinds())})")
    return list(_of_record(path, kind))


def _kinds() -> dict[str, type[Record]]:
    from bench import result
    from bench.gpu_check.result import GPU_CHECK, GpuCheck
    from bench.rule import RULE, Rules
    from bench.submissions import SUBMISSION, Submission

    return {
        result.RESULT: result.Result,
        result.THROUGHPUT: result.ThroughputResult,
        result.LEVELS: result.LevelsResult,
        result.FAILURE: result.Failure,
        RULE: Rules,
        SUBMISSION: Submission,
        GPU_CHECK: GpuCheck,
    }


def _of_record(path: Path, kind: type[Record]) -> Iterator[str]:
    from bench.result import read_record

    try:
        read_record(path, kind)
    except InputError as error:
        yield str(error)
    except OSError as error:
        yield f"{path}: {error.strerror or error}"


def _of_experiment(folder: Path) -> Iterator[str]:
    from bench.experiment import read_curve, read_experiment, read_faces
    from bench.nme_verdicts import experiment_rule
    from bench.result import FAILURE

    experiment = read_experiment(folder)
    yield from experiment.problems
    kinds = _kinds()
    for path in sorted([*folder.glob("jobs/*/submission.json"), *folder.glob(f"trials/*/{FAILURE}")]):
        yield from _of_record(path, kinds[path.name])
    try:
        experiment_rule(experiment)
    except InputError as error:
        yield str(error)
    for trial in experiment.results:
        for read, file in ((read_curve, "curve.csv"), (read_faces, "faces.npz")):
            try:
                if (trial.folder / file).exists():  # a committed baseline may have left them out
                    read(trial.folder)
            except InputError as error:
                yield str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.validate",
        description=__doc__.splitlines()[0].partition(":")[0] + ".",
        epilog="exit codes: 0 all is well; 1 something is not; 2 a path is no experiment and no record",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="an experiment's folder, or a result.json")
    found = 0
    for path in parser.parse_args(arguments).paths:
        problems = problems_of(path)
        for problem in problems:
            print(problem)
        count = "all is well" if not problems else f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        print(f"{path}: {count}")
        found += len(problems)
    return EXIT_PROBLEM if found else 0


if __name__ == "__main__":
    run_command(main)
