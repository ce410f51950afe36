"""Where jobs go, by name."""

from __future__ import annotations

from typing import Literal

from slurm.cluster import Slurm
from slurm.local import Local

Kind = Literal["local", "slurm"]


def backend(kind: Kind) -> Slurm | Local:
    """What sends, watches and ends jobs of this kind. Raises `slurm.request.Refused` where it is not to be had."""
    return Slurm() if kind == "slurm" else Local()
