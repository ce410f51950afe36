from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from pose.errors import InputError, refuse, run_command
from pose.files import link, remove_leftovers, replacing, writable_folder, write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("bug"), KeyboardInterrupt()]
)
def test_whatever_stops_a_write_the_old_file_stays_and_nothing_is_left(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    expected = InputError if isinstance(error, OSError) else type(error)

    def interrupted_write() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise error

    with pytest.raises(expected) as caught:
        interrupted_write()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot write {path}: No space left on device"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    assert writable_folder(tmp_path / "a" / "b").is_dir()
    assert not any((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/below: cannot be written \(Not a directory\)"):
        writable_folder(tmp_path / "file" / "below")


def test_one_problem_is_a_sentence_and_many_are_a_list() -> None:
    with pytest.raises(InputError, match=r"^LIST: line 3 is bad$"):
        refuse("LIST", ["line 3 is bad"])
    with pytest.raises(InputError) as caught:
        refuse("LIST", [f"line {i} is bad" for i in range(25)])
    lines = str(caught.value).splitlines()
    assert lines[0] == "LIST: 25 problems"
    assert lines[-1] == "  ... and 5 more"
    assert len(lines) == 22


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (InputError("x.yaml: bad"), 2, "error: x.yaml: bad\n"),
        (OSError(errno.EACCES, "Permission denied", "/x/y"), 2, "error: /x/y: Permission denied\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_command_ends_without_a_traceback(
    error: BaseException, code: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == code
    assert capsys.readouterr().err == printed


UNTIDY = """
import atexit, os
from pose.errors import InputError, run_command

class Untidy:
    def __del__(self):
        os.abort()  # as the interpreter is taken apart

def main():
    global left
    left = Untidy()
    atexit.register(print, "tidied")
    if CODE:
        raise InputError("x.yaml: bad")
    return 0

run_command(main)
"""


@pytest.mark.parametrize("code", [0, 2])
def test_a_rank_ends_with_its_code_whatever_its_process_would_still_do(code: int) -> None:
    line = [sys.executable, "-c", UNTIDY.replace("CODE", str(code))]
    for ranks, wanted in (("2", code), ("1", -signal.SIGABRT)):
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "WORLD_SIZE": ranks}
        ended = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == wanted
        assert ended.stdout == "tidied\n"
        assert ended.stderr.startswith("error: x.yaml: bad\n" if code else "")


def test_a_bug_keeps_its_traceback() -> None:
    def main() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main)


def test_a_second_name_replaces_the_old_file_and_outlives_the_first_ones_replacement(tmp_path: Path) -> None:
    best, last = tmp_path / "best", tmp_path / "last"
    write_atomically(best, b"one")
    write_atomically(last, b"old")
    assert link(best, last)
    assert link(best, last)  # which it is already
    write_atomically(best, b"two")
    assert last.read_bytes() == b"one"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["best", "last"]


def test_a_second_name_that_cannot_be_given_leaves_everything_as_it_was(tmp_path: Path) -> None:
    write_atomically(tmp_path / "last", b"old")
    assert not link(tmp_path / "missing", tmp_path / "last")
    assert (tmp_path / "last").read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["last"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".file.12.tmp", ".file.tmp", ".other.12.tmp", "file", "file.12.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "file")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".file.tmp", ".other.12.tmp", "file", "file.12.tmp"]
