"""One rank of a training run: `rank_program.py RECIPE.json FOLDER`. Prints one line of JSON of what it ended with."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from pose.data.source import load_split
from pose.distributed import joined
from pose.evaluator import Evaluator
from pose.recipe import Recipe
from pose.trainer import Interrupted, Look, train
from slurm.leave import leave


def main() -> None:
    values, folder = json.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    stop_rank, stop_step = values.pop("signal", (None, None))
    recipe = Recipe.model_validate(values)
    found: dict[str, Any] = {}
    with joined(recipe.train.parallel.world_size, "cpu") as ranks:
        found["collected"] = ranks.collect(torch.arange(7)[ranks.shard(7)], 7).tolist()
        faces, test_faces = load_split(recipe.data, "train"), load_split(recipe.data, "test")
        evaluator = Evaluator(test_faces, recipe.input, recipe.evaluate, ranks)

        def on_look(look: Look) -> None:
            if look.step == stop_step and ranks.rank == stop_rank:
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            trained = train(
                recipe, faces, folder, seed=0, ranks=ranks, validate=evaluator.score, on_look=on_look, say=str
            )
        except Interrupted as error:
            found["interrupted"] = str(error)
        else:
            result = evaluator.evaluate(trained.model, shown=False)
            digest = hashlib.sha256()
            for parameter in trained.model.parameters():
                digest.update(parameter.detach().numpy().tobytes())
            found |= {
                "weights": digest.hexdigest(),
                "nme": result.nme.tolist(),
                "final_loss": trained.final_loss,
                "milestones": [vars(milestone) for milestone in trained.milestones],
            }
    print(json.dumps({"rank": ranks.rank, **found}), flush=True)


if __name__ == "__main__":
    main()
    leave(0)
