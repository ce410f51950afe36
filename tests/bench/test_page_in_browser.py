"""Reports in a real browser: nothing missing, nothing loaded, nothing overflowing, on a wide screen and on a phone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from conftest import REPOSITORY, shell_environment
from PIL import Image
from records import levels_result, result, store, throughput_result

from bench.report import build, main

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian's package chromium)")

WIDTHS = (1280, 390)
LABELS = "Array.from(document.querySelectorAll('svg.figure')).map(f => f.getAttribute('aria-label'))"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the smoke run, as bench.run leaves it, of fewer steps and faces."""
    out = tmp_path_factory.mktemp("smoke")
    settings = {
        "train.steps": 45, "data.train": 96, "data.test": 40, "data.size": 96, "data.root": str(out / "faces"),
        "parity.trajectory_steps": 4, "gates.mean_shape_ratio": 2.0,
    }  # fmt: skip
    arguments = [item for key, value in settings.items() for item in ("--set", f"{key}={value}")]
    ended = subprocess.run(
        [sys.executable, "-m", "bench.run", *arguments, "--out", str(out / "results")],
        cwd=REPOSITORY,
        env={name: value for name, value in shell_environment().items() if not name.startswith("PYTEST")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return out / "results" / "report.html"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages with everything that a page can hold: parity of many seeds, scaling, gains, kernels."""
    folder = tmp_path_factory.mktemp("full")
    kernels = REPOSITORY / "bench/baselines/2026-11-25-kernels-cpu/kernels.json"
    names = ("reference", "a_variant_with_quite_a_long_name", "another")
    trained = store(
        folder / "trained",
        [
            *(result(variant=name, seed=seed) for name in names for seed in range(6)),
            *(levels_result(name) for name in names[1:]),
        ],
        {"parity": {"gating": ["test"]}},
    )
    speeds = [("plain", 1, 100.0), ("tf32", 1, 140.0), ("graph", 1, 230.0), ("four", 4, 800.0), ("eight", 8, 1300.0)]
    measured = [
        throughput_result(
            name, repeat, speed * (1 + 0.01 * repeat), world_size=ranks, batch_size=256 * ranks,
            config={
                "train": {"batch_size": 256 * ranks, "parallel": {"world_size": ranks}},
                "loss": name if ranks == 1 else "plain",
            },
        )
        for repeat in range(3)
        for name, ranks, speed in speeds
    ]  # fmt: skip
    timed = store(
        folder / "timed", measured,
        {"measure": "throughput", "throughput": {"repeats": 3, "windows": 10, "window_steps": 10}},
    )  # fmt: skip
    for one in (trained, timed):
        (one / "kernels.json").write_bytes(kernels.read_bytes())
    return {"trained": build(trained), "timed": build(timed)}


def problems(browser: Browser, page: Path, width: int, *, dark: bool = False) -> dict[str, Any]:
    """What is wrong with a page at this width; everything is empty where nothing is."""
    browser.open(page, width, dark=dark)
    requests = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
    outside = """
        (() => {
          const wide = [];
          for (const one of document.querySelectorAll("main *")) {
            const box = one.getBoundingClientRect();
            if (box.width && (box.right > innerWidth + 1 || box.left < -1) && !one.closest(".scroll, pre, svg"))
              wide.push(one.tagName + "." + one.className + " " + Math.round(box.right));
          }
          return wide;
        })()"""
    cut = """
        Array.from(document.querySelectorAll("svg.figure text")).filter(text => {
          const box = text.getBoundingClientRect(), svg = text.closest("svg").getBoundingClientRect();
          return box.left < svg.left - 3 || box.right > svg.right + 3
            || box.top < svg.top - 3 || box.bottom > svg.bottom + 3;
        }).map(text => text.textContent)"""
    return {
        "console": browser.seen("Log.entryAdded") + browser.seen("Runtime.consoleAPICalled"),
        "errors": browser.seen("Runtime.exceptionThrown"),
        "requests": [url for url in requests if not url.startswith("data:") and url != page.absolute().as_uri()],
        "overflow": browser.value("Math.max(0, document.documentElement.scrollWidth - innerWidth)") or [],
        "outside": browser.value(outside),
        "cut": browser.value(cut),
        "pictures": browser.value("Array.from(document.images).filter(i => !i.naturalWidth || !i.alt).length") or [],
        "figures": browser.value(
            "Array.from(document.querySelectorAll('svg.figure')).filter(f => !f.getAttribute('aria-label') ||"
            " f.getBoundingClientRect().height < 50).length"
        )
        or [],
        "scripts": browser.value("document.scripts.length") or [],
    }


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_smoke_runs_report_opens_without_a_flaw(
    browser: Browser, smoke: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    found = problems(browser, smoke, width, dark=dark)
    assert not any(found.values()), found
    figures = browser.value(
        "Array.from(document.querySelectorAll('svg.figure')).map(f => f.getAttribute('aria-label'))"
    )
    for beginning in (
        "Differences in NME", "Distance of weights", "Cumulative error", "Training loss", "Training speed",
    ):  # fmt: skip
        assert any(label.startswith(beginning) for label in figures), (beginning, figures)
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width == width
        background = picture.convert("L").getpixel((1, 1))
    assert isinstance(background, int | float)
    assert (background < 128) == dark


def test_the_smoke_runs_report_says_the_verdict_first(browser: Browser, smoke: Path) -> None:
    browser.open(smoke, 1280)
    assert (
        browser.value("document.querySelector('main p').textContent") == "3 of 3 trials are done; all 7 gates passed."
    )
    ids = browser.value("Array.from(document.querySelectorAll('section')).map(s => s.id)")
    assert [name for name in ids if name != "warnings"] == [
        "gates", "parity", "levels", "accuracy", "curves", "speed", "op-errors", "faces", "data", "trials",
        "environment", "config", "repeat",
    ]  # fmt: skip
    links = browser.value("Array.from(document.links).map(link => link.href)")
    assert links
    for link in links:
        assert link.startswith("file://"), link  # nothing leads out of the experiment's folder
        assert Path(link.removeprefix("file://")).exists(), link


@pytest.mark.parametrize("page", ["trained", "timed"])
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_with_everything_on_them_open_without_a_flaw(
    browser: Browser, full: dict[str, Path], page: str, width: int
) -> None:
    found = problems(browser, full[page], width)
    assert not any(found.values()), found
    figures = browser.value(
        "Array.from(document.querySelectorAll('svg.figure')).map(f => f.getAttribute('aria-label'))"
    )
    wanted = {
        "trained": ("Differences in NME", "Distance of weights", "Time per call"),
        "timed": ("Training speed", "Gains in speed", "Scaling efficiency", "Time per call"),
    }
    for beginning in wanted[page]:
        assert any(label.startswith(beginning) for label in figures), (beginning, figures)


def test_a_report_is_printed_as_json_and_csv_too(full: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for name, key in (("trained", "parity"), ("timed", "speeds")):
        folder = full[name].parent
        assert main([str(folder), "--format", "json"]) == 0
        content = json.loads(capsys.readouterr().out)
        assert content[key]
        assert content["verdict"]["sentence"]
        for trial in content["trials"]:
            assert (folder / trial["result"]).exists()
        assert main([str(folder), "--format", "csv"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("trial,variant,")
        assert len(lines) > len(content["trials"]) / 2


def test_a_kernel_benchmark_is_printed_as_json_and_csv_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = REPOSITORY / "bench/baselines/2026-11-25-kernels-cpu/kernels.json"
    (tmp_path / "kernels.json").write_bytes(source.read_bytes())
    assert main([str(tmp_path), "--format", "json"]) == 0
    count = len(json.loads(capsys.readouterr().out)["measurements"])
    assert main([str(tmp_path), "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == count + 1
