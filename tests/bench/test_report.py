"""The report of an experiment, from folders made up of small random numbers and pictures."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from bench.experiment import read_experiment
from bench.report import build, main
from bench.result import Environment, Failure, OpError, Result, SubsetMetrics, Throughput, Timings, write_record
from pose.errors import InputError

SUBSETS = ("test", "pose", "expression", "illumination", "makeup", "occlusion", "blur")
FACES = 24


def make_result(variant: str, seed: int, rng: np.random.Generator, **changes: Any) -> Result:
    def metrics(level: float) -> dict[str, SubsetMetrics]:
        table = {
            subset: SubsetMetrics(
                count=FACES - place,
                nme=level * (1 + rng.uniform(0, 0.5)),
                failure_rate=rng.uniform(0, 1),
                auc=rng.uniform(0, 1),
            )
            for place, subset in enumerate(SUBSETS)
        }
        table["makeup"] = SubsetMetrics(count=0, nme=None, failure_rate=None, auc=None)
        del table["blur"]
        return table

    values: dict[str, Any] = {
        "trial": trial_id(variant, seed),
        "experiment": "fake",
        "variant": variant,
        "seed": seed,
        "config": {"loss": {"name": "wing"}},
        "environment": Environment(
            commit="a" * 40,
            dirty=False,
            host="host",
            platform="Linux",
            python="3.11.2",
            packages={"torch": "2.11.0"},
            cpu="processor",
            cpus=2,
            threads=2,
            gpu=None,
            driver=None,
            variables={"OMP_NUM_THREADS": "2"},
        ),
        "train_faces": 1500,
        "test_faces": FACES,
        "steps": 100,
        "final_loss": 1.25,
        "metrics": metrics(0.09),
        "mean_shape": {s: SubsetMetrics(count=FACES, nme=0.27, failure_rate=0.99, auc=0.001) for s in SUBSETS},
        "throughput": Throughput(
            images_per_second=700.0,
            windows=list(rng.uniform(600, 800, 5)),
            window_steps=20,
            warmup_steps=10,
            batch_size=32,
            input_share=0.25,
        ),
        "timings": Timings(data=1.0, first_step=0.5, train=20.0, evaluate=2.0, total=24.0),
        "op_error": OpError(
            dtype="float32",
            elements=100_000,
            loss_relative=1e-8,
            gradient_ulp=0.75,
            loss_relative_limit=1e-6,
            gradient_ulp_limit=2.0,
        ),
        "started": f"2026-01-01T00:0{seed}:00Z",
    }
    return Result(**(values | changes))


def trial_id(variant: str, seed: int) -> str:
    return f"{variant}-s{seed}-0123456789"


def write_trial(folder: Path, result: Result, pictures: list[Path], rng: np.random.Generator) -> Path:
    trial = folder / "trials" / result.trial
    trial.mkdir(parents=True)
    write_record(result, trial / "result.json")
    lines = ["step,epoch,learning_rate,loss,images_per_second"]
    lines += [f"{step},0,0.001,{100 / step + rng.uniform():.4f},700" for step in range(5, 101, 5)]
    (trial / "curve.csv").write_text("\n".join(lines) + "\n")
    true = np.random.default_rng(1).uniform(10, 50, (FACES, 98, 2))  # the same faces for every trial
    np.savez(
        trial / "faces.npz",
        nme=rng.gamma(4, 0.02, FACES),
        true=true,
        predicted=true + rng.normal(0, 1, true.shape),
        center=np.full((FACES, 2), 30.0),
        side=np.full(FACES, 45.0),
        attributes=np.zeros((FACES, 6), bool),
        attributes_known=np.ones(6, bool),
        image=np.array([str(pictures[i % len(pictures)]) for i in range(FACES)]),
        mean_shape_nme=rng.gamma(8, 0.03, FACES),
    )
    (trial / "log.txt").write_text("log\n")
    return trial


Maker = Callable[..., Path]


@pytest.fixture
def make_experiment(tmp_path: Path) -> Maker:
    """A function that writes an experiment's folder with one result per variant and seed."""

    def make(
        variants: tuple[str, ...] = ("plain", "wing"), seeds: tuple[int, ...] = (0, 1), kind: str = "synthetic"
    ) -> Path:
        rng = np.random.default_rng(7)
        folder = tmp_path / "results" / "fake"
        folder.mkdir(parents=True)
        pictures = []
        for number in range(3):
            pictures.append(tmp_path / f"picture{number}.jpg")
            Image.fromarray(rng.integers(0, 255, (60, 60, 3), dtype=np.uint8)).save(pictures[-1])
        config = {
            "name": "fake",
            "description": "made up",
            "data": {"kind": kind},
            "variants": {variant: {} for variant in variants},
            "baseline": variants[0],
            "seeds": list(seeds),
            "gates": {},
            "trials": [trial_id(variant, seed) for seed in seeds for variant in variants],
        }
        (folder / "experiment.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        for variant in variants:
            for seed in seeds:
                write_trial(folder, make_result(variant, seed, rng), pictures, rng)
        gates = [{"gate": "op_error", "variant": v, "passed": True, "detail": "fine"} for v in variants]
        (folder / "gates.json").write_text(json.dumps(gates))
        Image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(folder / "contact_sheet.png")
        return folder

    return make


def results_of(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    contents = [json.loads(path.read_text()) for path in sorted(folder.glob("trials/*/result.json"))]
    return {(one["variant"], one["seed"]): one for one in contents}


class Page(HTMLParser):
    """What a browser would see: the tables as text, and everything that refers to something else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.text = ""
        self._row: list[str] = []
        self._cell: list[str] | None = None
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.references.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
            elif name == "aria-label":
                self.labels.append(value or "")
        if tag == "tr":
            self._row = []
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self._row.append(" ".join("".join(self._cell).split()))
            self._cell = None
        elif tag == "tr":
            self.rows.append(self._row)

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "style":
            return
        self.text += data
        if self._cell is not None:
            self._cell.append(data)

    def row(self, start: str, number: int = 0) -> list[str]:
        """The `number`-th table row whose first cell starts with `start`."""
        return [row for row in self.rows if row and row[0].startswith(start)][number]


def page_of(folder: Path) -> Page:
    return Page(build(folder).read_text(encoding="utf-8"))


def test_the_page_needs_nothing_from_outside_and_runs_nothing(make_experiment: Maker) -> None:
    folder = make_experiment()
    text = build(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"https?:|//[a-z]|@import|\bon[a-z]+=", re.sub(r'base64,[^"]*', "", text))
    for reference in page.references:
        local = reference.startswith(("data:image/", "#")) or (folder / reference).exists()
        assert local, reference
    for target in re.findall(r"url\(([^)]*)\)", text):
        assert target.startswith("#")
        assert target[1:] in page.ids


def test_every_figure_and_picture_is_on_the_page_and_no_id_appears_twice(make_experiment: Maker) -> None:
    page = page_of(make_experiment())
    assert page.tags.count("svg") == 4  # parity, losses, CED, throughput
    assert [label.split()[0] for label in page.labels] == ["Differences", "Cumulative", "Training", "Training"]
    assert len(page.ids) == len(set(page.ids))
    pictures = [reference for reference in page.references if reference.startswith("data:image/jpeg")]
    assert len(pictures) == 2 * 10 + 1  # ten faces of each variant, and the contact sheet
    assert "mean shape" in page.text[page.text.index("Curves") :]  # in the CED's legend


def test_numbers_in_the_tables_are_the_means_of_the_results_times_100(make_experiment: Maker) -> None:
    folder = make_experiment()
    page, results = page_of(folder), results_of(folder)
    for table, metric in enumerate(("nme", "failure_rate", "auc")):
        for variant in ("plain", "wing"):
            # rows that start with the variant's name and the number of its seeds stand only in these three tables
            rows = [row for row in page.rows if row and re.fullmatch(rf"{variant} ?(baseline)? ?2 seeds", row[0])]
            values = [100 * results[variant, seed]["metrics"]["occlusion"][metric] for seed in (0, 1)]
            assert rows[table][1 + SUBSETS.index("occlusion")] == f"{fmean(values):.2f} ± {stdev(values):.2f}"
        assert page.row("mean shape", table)[1] == {"nme": "27.00", "failure_rate": "99.00", "auc": "0.10"}[metric]


def test_differences_to_the_baseline_are_paired_by_seed(make_experiment: Maker) -> None:
    folder = make_experiment(seeds=(0, 1, 2))
    (folder / "trials" / trial_id("plain", 1) / "result.json").unlink()
    results = results_of(folder)
    pairs = [
        100 * (results["wing", seed]["metrics"]["test"]["nme"] - results["plain", seed]["metrics"]["test"]["nme"])
        for seed in (0, 2)
    ]
    row = next(row for row in page_of(folder).rows if row and row[0] == "wing" and row[1] == "test")
    assert row[2] == "INCONCLUSIVE"
    assert float(row[3].replace("−", "-")) == pytest.approx(fmean(pairs), abs=0.0005)  # shown to three digits
    assert row[6] == "2 of 3"


def test_subsets_without_faces_or_attributes_are_named_and_never_shown_as_nan(make_experiment: Maker) -> None:
    folder = make_experiment()
    path = folder / "trials" / trial_id("wing", 0) / "result.json"
    content = json.loads(path.read_text())
    content["metrics"]["pose"]["nme"] = float("nan")
    path.write_text(json.dumps(content))
    page = page_of(folder)
    row = page.row("plain")
    assert row[1 + SUBSETS.index("makeup")] == "no faces"
    assert row[1 + SUBSETS.index("blur")] == "unknown"
    assert not re.search(r"\bnan\b|\bNone\b|\bUndefined\b", page.text)


@pytest.mark.parametrize(("kind", "shown"), [("synthetic", False), ("wflw", True), ("mmpose", True)])
def test_published_numbers_stand_only_beside_real_faces(make_experiment: Maker, kind: str, shown: bool) -> None:
    page = page_of(make_experiment(kind=kind))
    assert ("deeppose_res50_wingloss" in page.text) == shown
    if shown:
        # the columns of the published table, in the report's order of subsets
        assert page.row("deeppose_res50 (")[1:] == ["4.85", "8.50", "5.20", "4.81", "4.82", "5.69", "5.45"]
        assert page.row("deeppose_res50_wingloss")[1:] == ["4.64", "8.25", "5.07", "4.59", "4.59", "5.56", "5.26"]


def test_names_and_texts_are_escaped(make_experiment: Maker) -> None:
    name = "<b>x & $y$"
    folder = make_experiment(variants=("plain", name))
    config = folder / "experiment.yaml"
    config.write_text(config.read_text().replace("made up", "'</pre><script>alert(1)</script>'"))
    page = page_of(folder)
    assert "b" in page.tags  # a sample's NME is printed bold
    assert "script" not in page.tags
    assert page.row(name)[0].startswith(name)
    assert "<script>alert(1)</script>" in page.text
    assert any(name in label for label in page.labels)


def test_a_failed_and_a_missing_trial_are_shown_and_not_counted(make_experiment: Maker) -> None:
    folder = make_experiment()
    trial = folder / "trials" / trial_id("wing", 1)
    (trial / "result.json").unlink()
    failure = Failure(kind="non_finite_loss", message="The loss is nan at step 7.", step=7, checkpoint="last.pt")
    write_record(failure, trial / "failure.json")
    (folder / "trials" / trial_id("plain", 1) / "result.json").unlink()
    page = page_of(folder)
    assert "2 of 4 trials are done, 1 failed, 1 missing; all 2 gates passed." in page.text
    assert "The loss is nan at step 7." in page.text
    assert "last.pt" in page.text
    assert f"{trial_id('plain', 1)}: it has no result" in page.text
    assert page.row("wing")[0] != "wing2 seeds"
    assert len((folder / "report.csv").read_text().splitlines()) == 1 + 2 * len(SUBSETS)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "not JSON"),  # a copy that was cut off
        (lambda text: "", "not JSON"),  # an empty file
        (lambda text: "[1, 2]", "result.json"),  # JSON of something else
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), "schema version 2"),
        (lambda text: text.replace('"steps": 100', '"steps": "many"'), "steps"),
        (lambda text: text.replace('"experiment": "fake"', '"experiment": "other"'), "belongs to the experiment"),
        (lambda text: text.replace('"trial": "wing-s1', '"trial": "wing-s3'), "belongs to the trial"),
    ],
)
def test_an_unusable_result_is_named_in_page_and_terminal_and_left_out(
    make_experiment: Maker, capsys: pytest.CaptureFixture[str], damage: Callable[[str], str], said: str
) -> None:
    folder = make_experiment()
    path = folder / "trials" / trial_id("wing", 1) / "result.json"
    path.write_text(damage(path.read_text()))
    assert main([str(folder)]) == 0
    page = Page((folder / "report.html").read_text())
    printed = " ".join(capsys.readouterr().out.split())
    for text in (" ".join(page.text.split()), printed):
        assert f"trials/{trial_id('wing', 1)}/result.json" in text
        assert said in text
        assert "3 of 4 trials are done, 1 missing" in text
    assert "wing,1," not in (folder / "report.csv").read_text()
    assert "wing1seed" in {row[0].replace(" ", "") for row in page.rows if row}


def test_results_of_other_settings_in_the_same_folder_are_named_and_left_out(make_experiment: Maker) -> None:
    folder = make_experiment()
    (folder / "trials" / trial_id("wing", 0)).rename(folder / "trials" / "wing-s0-ffffffffff")
    experiment = read_experiment(folder)
    assert len(experiment.results) == 3
    assert experiment.missing == (trial_id("wing", 0),)
    assert "wing-s0-ffffffffff" in " ".join(experiment.problems)


def test_lost_curves_faces_and_images_cost_one_figure_and_a_warning(make_experiment: Maker, tmp_path: Path) -> None:
    folder = make_experiment()
    (folder / "trials" / trial_id("plain", 0) / "faces.npz").write_bytes(b"PK\x03\x04 cut off")
    (folder / "trials" / trial_id("plain", 1) / "curve.csv").unlink()
    (folder / "trials" / trial_id("wing", 0) / "curve.csv").write_text("step,loss\n5,high\n")
    (folder / "contact_sheet.png").write_bytes(b"no picture")
    (tmp_path / "picture0.jpg").unlink()
    page = page_of(folder)
    assert page.tags.count("svg") == 4
    for name in (
        f"trials/{trial_id('plain', 0)}/faces.npz",
        f"trials/{trial_id('plain', 1)}/curve.csv",
        f"trials/{trial_id('wing', 0)}/curve.csv: line 2",
        "contact_sheet.png",
        "picture0.jpg: no such image",
    ):
        assert name in page.text


def test_curves_of_one_step_and_curves_without_a_common_step_are_drawn(make_experiment: Maker) -> None:
    folder = make_experiment()
    for variant, seed, line in (("plain", 0, "5,0.5"), ("plain", 1, "6,0.5"), ("wing", 0, "5,0"), ("wing", 1, "5,nan")):
        (folder / "trials" / trial_id(variant, seed) / "curve.csv").write_text(f"step,loss\n{line}\n")
    assert page_of(folder).tags.count("svg") == 4


@pytest.mark.parametrize("top", [0.45, 2.0, 90.0, 1e5])  # less than a decade, one, two, more
def test_the_loss_axis_has_at_least_two_numbers_whatever_its_range(make_experiment: Maker, top: float) -> None:
    folder = make_experiment(variants=("plain",), seeds=(0,))
    lines = [f"{step},{loss}" for step, loss in zip((1, 2, 3), np.geomspace(top, 0.22, 3), strict=True)]
    (folder / "trials" / trial_id("plain", 0) / "curve.csv").write_text("\n".join(["step,loss", *lines]) + "\n")
    text = build(folder).read_text()
    figure = next(part for part in text.split("<svg")[1:] if 'aria-label="Training loss' in part)
    axis = figure[figure.index('id="loss-matplotlib.axis_2"') :]
    assert len(re.findall(r">[0-9.e+]+</text>", axis[: axis.index("training loss")])) >= 2


def test_faces_with_an_nme_that_is_no_number_count_as_failures_in_the_ced(make_experiment: Maker) -> None:
    folder = make_experiment(variants=("plain",), seeds=(0,))
    path = folder / "trials" / trial_id("plain", 0) / "faces.npz"
    nme = np.full(FACES, np.nan)
    nme[: FACES // 4] = 0.05
    np.savez(path, **dict(np.load(path)) | {"nme": nme})
    page = page_of(folder)
    assert "plain 25.0 %" in next(label for label in page.labels if label.startswith("Cumulative"))


def test_a_faces_file_with_pickled_objects_is_not_loaded(make_experiment: Maker) -> None:
    folder = make_experiment()
    path = folder / "trials" / trial_id("plain", 0) / "faces.npz"
    columns = dict(np.load(path))
    np.savez(path, **columns | {"image": columns["image"].astype(object)})
    assert "not a readable .npz file of plain columns" in page_of(folder).text


def test_trials_that_ran_alike_cause_no_warning(make_experiment: Maker) -> None:
    assert "Warnings" not in page_of(make_experiment()).text


def test_different_commits_and_packages_among_the_trials_are_flagged(make_experiment: Maker) -> None:
    folder = make_experiment()
    path = folder / "trials" / trial_id("wing", 1) / "result.json"
    content = json.loads(path.read_text())
    content["environment"] |= {"commit": "b" * 40, "dirty": True, "packages": {"torch": "2.12.0"}, "gpu": "H100"}
    path.write_text(json.dumps(content))
    text = page_of(folder).text
    assert f"different commits: {'b' * 12} in wing (seed 1); {'a' * 12} in the other 3." in text
    assert "different versions of torch: 2.12.0 in wing (seed 1); 2.11.0 in the other 3." in text
    assert "different GPUs: H100 in wing (seed 1); no GPU in the other 3." in text
    assert "Uncommitted changes were in the checkout of wing (seed 1)." in text


def test_a_failed_gate_is_the_first_thing_said(make_experiment: Maker) -> None:
    folder = make_experiment()
    gates = json.loads((folder / "gates.json").read_text())
    gates[1] |= {"gate": "beats the mean shape", "passed": False, "detail": "24 is more than 12"}
    (folder / "gates.json").write_text(json.dumps(gates))
    page = page_of(folder)
    sentence = "4 of 4 trials are done; 1 of 2 gates failed: beats the mean shape (wing)."
    assert sentence in page.text
    assert page.text.index(sentence) < page.text.index("Test NME")
    assert page.row("beats the mean shape")[1:] == ["wing", "✗ failed", "24 is more than 12"]


def test_without_gates_nothing_counts_as_passed(make_experiment: Maker) -> None:
    folder = make_experiment()
    (folder / "gates.json").write_text('[{"gate": "op_error"')
    page = page_of(folder)
    assert "4 of 4 trials are done; no gate was judged." in page.text
    assert "gates.json" in page.text


def test_an_op_error_above_its_limit_is_the_one_shown(make_experiment: Maker) -> None:
    folder = make_experiment()
    path = folder / "trials" / trial_id("wing", 1) / "result.json"
    content = json.loads(path.read_text())
    content["op_error"]["gradient_ulp"] = 31.5
    path.write_text(json.dumps(content))
    row = next(row for row in page_of(folder).rows if row[:2] == ["wing (seed 1)", "float32"])
    assert row[5:] == ["31.50", "2"]


@pytest.mark.parametrize("key", ["loss_relative", "gradient_ulp"])
def test_an_op_error_that_is_no_number_is_shown_as_that(make_experiment: Maker, key: str) -> None:
    folder = make_experiment()
    path = folder / "trials" / trial_id("wing", 1) / "result.json"
    content = json.loads(path.read_text())
    content["op_error"][key] = None
    path.write_text(json.dumps(content))
    row = next(row for row in page_of(folder).rows if row[:2] == ["wing (seed 1)", "float32"])
    assert row[{"loss_relative": 3, "gradient_ulp": 5}[key]] == "not a number"


def test_csv_has_a_row_per_trial_and_subset_with_the_results_numbers(make_experiment: Maker) -> None:
    folder = make_experiment()
    build(folder)
    with (folder / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * len(SUBSETS)
    for row in rows:
        result = json.loads((folder / row["result"]).read_text())
        assert (row["trial"], row["variant"], int(row["seed"])) == (result["trial"], result["variant"], result["seed"])
        assert float(row["images_per_second"]) == result["throughput"]["images_per_second"]
        assert float(row["seconds"]) == result["timings"]["total"]
        metrics = result["metrics"].get(row["subset"], {})
        for name in ("count", "nme", "failure_rate", "auc"):
            expected = metrics.get(name)
            assert row[name] == "" if expected is None else float(row[name]) == expected


def test_two_builds_give_the_same_bytes(make_experiment: Maker) -> None:
    folder = make_experiment()
    first = build(folder).read_bytes(), (folder / "report.csv").read_bytes()
    assert (build(folder).read_bytes(), (folder / "report.csv").read_bytes()) == first


def test_an_experiment_without_any_result_still_has_a_page(make_experiment: Maker) -> None:
    folder = make_experiment()
    for path in folder.glob("trials/*/result.json"):
        path.unlink()
    (folder / "gates.json").unlink()
    page = page_of(folder)
    assert "0 of 4 trials are done, 4 missing; no gate was judged." in page.text
    assert "svg" not in page.tags


def test_the_terminal_shows_the_same_table_without_colours_where_it_is_none(
    make_experiment: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_experiment(kind="wflw")
    assert main([str(folder)]) == 0
    printed = capsys.readouterr().out
    results = results_of(folder)
    values = [100 * results["wing", seed]["metrics"]["test"]["nme"] for seed in (0, 1)]
    line = next(line for line in printed.splitlines() if line.startswith(" wing"))
    assert line.split()[1:4] == [f"{fmean(values):.2f}", "±", f"{stdev(values):.2f}"]
    assert "\x1b" not in printed
    assert "4 of 4 trials are done; all 2 gates passed." in printed
    assert all(number in printed for number in ("4.85", "8.25"))
    assert str(folder / "report.html") in printed


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "not the folder of an experiment"),
        ("name: [", "not YAML"),
        ("just text", "not an experiment"),
        ("name: x\nvariants: {a: {}}\nbaseline: a\nseeds: 3\ntrials: []", "seeds"),
        ("name: x\nvariants: {a: {}}\nbaseline: a\nseeds: [0]\ntrials: [../../etc]", "trials"),
    ],
)
def test_a_folder_that_is_no_experiment_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "experiment.yaml").write_text(content)
    with pytest.raises(InputError, match=said):
        read_experiment(tmp_path)


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.report", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr


def test_a_report_is_built_without_torch(make_experiment: Maker) -> None:
    code = "import sys; from bench.report import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(make_experiment())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
