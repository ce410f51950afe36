from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from records import result

from bench.result import Result, SubsetMetrics, read_result, write_record
from pose.errors import InputError

SCHEMA = Path(__file__).resolve().parents[2] / "bench" / "result.schema.json"


def test_the_documented_schema_is_the_one_that_is_written() -> None:
    # after a deliberate change: json.dumps(Result.model_json_schema(mode="serialization"), indent=1)
    assert json.loads(SCHEMA.read_text()) == Result.model_json_schema(mode="serialization")


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_record(result(), tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == result()


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
        ("[1]", "schema version None"),
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
