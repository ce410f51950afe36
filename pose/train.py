"""Train one model and evaluate it: `python -m pose.train RECIPE.yaml --out FOLDER`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pose.errors import InputError, run_command

if TYPE_CHECKING:
    from pose.distributed import Ranks
    from pose.recipe import Recipe
    from pose.trainer import Look

EXIT_UNFINISHED = 3  # stopped by a signal, or by a loss that is not finite


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pose.train", description=__doc__)
    parser.add_argument("recipe", type=Path, help="YAML file, such as configs/deeppose_res50_wflw.yaml")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for checkpoint.pt, best.pt, curve.csv, faces.npz; a stopped run goes on from its checkpoint there",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="settings",
        help="change a value of the recipe; may be given several times",
    )
    parser.add_argument("--seed", type=int, default=0, help="initialisation, order of faces, augmentation (default 0)")
    options = parser.parse_args(arguments)
    if not 0 <= options.seed < 2**32:
        raise InputError(f"--seed {options.seed}: 0 to 2^32 - 1 is wanted")

    from pose.recipe import load_recipe

    return _run(load_recipe(options.recipe, options.settings), options.out, options.seed)


def _run(recipe: Recipe, out: Path, seed: int) -> int:
    from pose.distributed import joined

    with joined(recipe.train.parallel.world_size, recipe.train.device, captured=recipe.train.graph) as ranks:
        return _train(recipe, out, seed, ranks)


def _train(recipe: Recipe, out: Path, seed: int, ranks: Ranks) -> int:
    from pose.criterion import refuse_unavailable
    from pose.data.source import load_split
    from pose.evaluator import Evaluator, table
    from pose.files import writable_folder
    from pose.progress import progress
    from pose.stepper import refuse_impossible, total_steps
    from pose.trainer import Interrupted, NonFiniteLoss, train

    refuse_unavailable(recipe.loss, ranks.device)
    writable_folder(out)
    with ranks.main_first():  # a synthetic set is made once
        train_faces, test_faces = load_split(recipe.data, "train"), load_split(recipe.data, "test")
    refuse_impossible(recipe, ranks, faces=len(train_faces))
    evaluator = Evaluator(test_faces, recipe.input, recipe.evaluate, ranks)
    try:
        with progress("training", total_steps(recipe.train, len(train_faces)), shown=ranks.main) as update:

            def on_look(look: Look) -> None:
                update(look.step, f"epoch {look.epoch + 1}, loss {look.loss:.4g}, {look.images_per_second:.0f} img/s")

            trained = train(recipe, train_faces, out, seed=seed, ranks=ranks, validate=evaluator.score, on_look=on_look)
    except NonFiniteLoss as error:
        print(f"error: {error}; the pictures of its batch:", *error.faces, sep="\n  ", file=sys.stderr)
        return EXIT_UNFINISHED
    except Interrupted as error:
        print(error, file=sys.stderr)
        return EXIT_UNFINISHED
    result = evaluator.evaluate(trained.model)
    if not ranks.main:
        return 0
    result.save(out / "faces.npz")
    print(table(result.rows()))
    print(f"{out / 'checkpoint.pt'}: {trained.steps} steps, final loss {trained.final_loss:.4g}")
    return 0


if __name__ == "__main__":
    run_command(main)
