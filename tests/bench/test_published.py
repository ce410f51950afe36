"""An NME beside published ones: its interval over seeds and faces holds what it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from records import result, store, subset

from bench.experiment import read_experiment, read_faces
from bench.published import PUBLISHED, nme_intervals, over_seeds_and_faces
from bench.report import build

FACES = 314  # of the smallest subset of WFLW's test set, expression


@pytest.mark.parametrize("seeds", [2, 3, 8])
@pytest.mark.parametrize(("of_seed", "of_face"), [(0.0003, 0.03), (0.002, 0.03), (0.005, 0.01)])
def test_the_interval_holds_the_true_nme(seeds: int, of_seed: float, of_face: float) -> None:
    rng = np.random.default_rng(seeds)
    trials, held = 2000, 0
    for _ in range(trials):
        face = rng.gamma((0.05 / of_face) ** 2, of_face**2 / 0.05, FACES)  # skewed as NMEs are, mean 0.05
        seed = rng.normal(0, of_seed, (seeds, 1))
        found = over_seeds_and_faces(face + seed + rng.normal(0, 0.005, (seeds, FACES)))
        assert found is not None
        held += found.low <= 0.05 <= found.high
    # On the wide side, never on the narrow one: 95 % less three standard errors of the simulation
    assert held / trials >= 0.935


def test_one_seed_has_the_interval_of_its_faces_alone() -> None:
    nme = np.random.default_rng(0).gamma(4, 0.0125, (1, 2500))
    found = over_seeds_and_faces(nme)
    assert found is not None
    assert found.value == pytest.approx(nme.mean())
    assert found.high - found.value == pytest.approx(1.959964 * nme.std(ddof=1) / 50)


def test_no_interval_of_what_is_no_number_or_one_face() -> None:
    assert over_seeds_and_faces(np.array([[0.1, np.nan, 0.2]])) is None
    assert over_seeds_and_faces(np.array([[0.1]])) is None


@pytest.mark.parametrize(("kind", "published"), [("wflw", True), ("synthetic", False)])
def test_the_page_puts_intervals_and_published_rows_side_by_side(tmp_path: Path, kind: str, published: bool) -> None:
    nme = np.linspace(0.03, 0.07, 400)
    records = [result(variant="a", seed=seed, metrics={"test": subset(0.05)}) for seed in range(3)]
    folder = store(tmp_path, records, {"data": {"kind": kind, "root": ""}}, {"a": nme})
    found = nme_intervals([read_faces(trial.folder) for trial in read_experiment(folder).of_variant("a")])
    assert set(found) == {"test", "pose", "blur"}  # subsets whose faces are known
    page = build(folder).read_text()
    section = page[page.index("With 95 % intervals over faces and seeds") :]
    section = section[: section.index("</table>")]
    one = found["test"]
    assert f"{100 * one.value:.2f}" in section
    assert f"{100 * one.low:.2f}" in section
    assert f"{100 * one.high:.2f}" in section
    for label, numbers in PUBLISHED.items():
        assert (label in section) == published
        assert (f"{numbers['test']:.2f}</td>" in section) == published


def test_lost_faces_are_named_and_the_others_have_their_interval(tmp_path: Path) -> None:
    records = [result(variant="a", seed=seed, metrics={"test": subset(0.05)}) for seed in range(2)]
    folder = store(tmp_path, records, None, {"a": np.linspace(0.03, 0.07, 400)})
    (folder / "trials/a-s1-0123456789/faces.npz").write_bytes(b"")
    page = build(folder).read_text()
    warning = "<li>trials/a-s1-0123456789/faces.npz: "
    assert page.count(warning) == 1
    left = nme_intervals([read_faces(folder / "trials/a-s0-0123456789")])["test"]
    assert f"{100 * left.low:.2f} … {100 * left.high:.2f}" in page[page.index("With 95 % intervals") :]


def test_trials_of_different_faces_have_no_interval(tmp_path: Path) -> None:
    records = [result(variant=name, seed=0, metrics={"test": subset(0.05)}) for name in "ab"]
    store(tmp_path, records, None, {"a": np.full(400, 0.05), "b": np.full(399, 0.05)})
    one, other = (read_faces(trial.folder) for trial in read_experiment(tmp_path).results)
    assert nme_intervals([one, other]) == {}
