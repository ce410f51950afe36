from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from records import result, throughput_result

from bench.result import (
    LevelsResult,
    Milestone,
    Record,
    Result,
    SubsetMetrics,
    ThroughputResult,
    read_result,
    read_throughput,
    write_record,
)
from pose.errors import InputError

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("result.schema.json", Result),
        ("throughput.schema.json", ThroughputResult),
        ("levels.schema.json", LevelsResult),
    ],
)
def test_the_documented_schema_is_the_one_that_is_written(file: str, kind: type[Record]) -> None:
    # after a deliberate change: json.dumps(Result.model_json_schema(mode="serialization"), indent=1)
    assert json.loads((BENCH / file).read_text()) == kind.model_json_schema(mode="serialization")


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_record(result(), tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == result()


def test_a_throughput_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = throughput_result("a", 0, 4500)
    write_record(written, tmp_path / "throughput.json")
    assert read_throughput(tmp_path / "throughput.json") == written


def test_a_result_of_an_earlier_program_has_no_milestones(tmp_path: Path) -> None:
    content = result(milestones=[Milestone(step=1, epoch=1, seconds=2.0, nme=0.1)]).model_dump(mode="json")
    for name in ("milestones", "caches", "repeat", "process_seconds"):
        del content[name]
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert read_result(tmp_path / "result.json") == result()


def test_utilisation_and_floor_are_shares_of_one_gpus_limits() -> None:
    # the arithmetic of one H200: 4,500 images/s x 31.7 GFLOP of 989 TFLOP/s, x 508 MB of 4.3 TB/s
    one = throughput_result("a", 0, 4500)
    assert one.model_flops_utilisation == pytest.approx(0.1442, abs=1e-4)
    assert one.floor_share == pytest.approx(0.5316, abs=1e-4)
    four = throughput_result("a", 0, 18_000, world_size=4, batch_size=1024)
    assert four.model_flops_utilisation == one.model_flops_utilisation
    unknown = throughput_result("a", 0, 4500, gpu=None)
    assert unknown.model_flops_utilisation is None
    assert unknown.floor_share is None


def test_a_throughput_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    content = throughput_result("a", 0, 4500).model_dump_json().replace("9.5", "NaN")
    (tmp_path / "throughput.json").write_text(content)
    with pytest.raises(InputError, match=r"throughput\.json: first_step_from_process: "):
        read_throughput(tmp_path / "throughput.json")


def test_numbers_that_do_not_exist_are_null_in_the_file(tmp_path: Path) -> None:
    empty = {"test": SubsetMetrics(count=0, nme=None, failure_rate=None, auc=None)}
    write_record(result(metrics=empty, final_loss=math.nan), tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["metrics"]["test"]["nme"] is None
    assert content["final_loss"] is None


def test_fields_of_a_later_minor_version_do_no_harm(tmp_path: Path) -> None:
    content = {**result().model_dump(mode="json"), "later": 1}
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert read_result(tmp_path / "result.json") == result()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ('{"schema_version": 1, "trial"', "not JSON"),
        ("[1]", "holds a list, not a record"),
        ('{"schema_version": 2}', "schema version 2, this program reads version 1"),
        ('{"schema_version": 1}', "trial: Field required"),
    ],
)
def test_a_file_that_is_no_result_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_result(path)
    assert str(caught.value).startswith(f"{path}: {message}")
