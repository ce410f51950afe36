"""Reading weights from files that nobody vouches for: nothing in them is ever executed."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pose.errors import InputError, refuse

DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8})(?:_\d{8})?\.pth$")  # NAME-92d0ba7f_20210303.pth, resnet50-0676ba61.pth


def read_weights(path: Path | str) -> Any:
    """What `torch.save` wrote to `path`, its tensors on the CPU.

    Tensors, plain containers and numpy scalars are read (published files keep their best score as a numpy scalar);
    a file that asks for anything else is refused before it can run code. Warns where the file's name states another
    SHA-256. Raises `InputError` naming the file.
    """
    try:
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on odd files, which are refused in one sentence below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        asked_for = re.search(r"GLOBAL ([\w.]+)|`?([\w.]+)`? (?:is|was) not an allowed|class ([\w.]+)", str(error))
        if asked_for is None:
            raise InputError(f"{path} is not a PyTorch file, or it is damaged") from None
        name = next(filter(None, asked_for.groups()))
        raise InputError(f"{path} holds pickled code ({name}) and was not loaded") from None
    except Exception as error:  # whatever a damaged file makes the reader stumble over: see the tests
        raise InputError(f"{path} is not a PyTorch file, or it is damaged ({type(error).__name__})") from None
    if published_digest(path) is False:
        warnings.warn(f"{path}: the content does not have the SHA-256 that its name states", stacklevel=3)
    return content


def published_digest(path: Path | str) -> bool | None:
    """Whether the file's SHA-256 begins with the 8 hex digits in its name; None when the name carries none."""
    named = DIGEST_IN_NAME.search(Path(path).name)
    if named is None:
        return None
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(named[1])


def matching_tensors(path: Path | str, found: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors `found` in `path`, checked against names, shapes and kinds of those `wanted`.

    `num_batches_tracked` may be missing, as in files older than that counter: it is 0 then. Raises `InputError`
    that names the file and every key that is missing, unknown or of another shape.
    """
    problems = []
    tensors = {}
    for name, like in wanted.items():
        tensor = found.get(name)
        if tensor is None and name.endswith(".num_batches_tracked"):
            tensor = torch.zeros_like(like)
        if tensor is None:
            problems.append(f"{name} is missing, wanted {_shape(like)}")
        elif not isinstance(tensor, Tensor):
            problems.append(f"{name} is a {type(tensor).__name__}, wanted a tensor of {_shape(like)}")
        elif tensor.shape != like.shape:
            problems.append(f"{name} has shape {_shape(tensor)}, wanted {_shape(like)}")
        elif tensor.is_floating_point() != like.is_floating_point() or tensor.is_complex():
            problems.append(f"{name} holds {tensor.dtype}, wanted {like.dtype}")
        else:
            tensors[name] = tensor
    problems += [f"{name} is unknown" for name in found if name not in wanted]
    if problems:
        refuse(str(path), problems, shown=5)
    return tensors


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _numpy_scalars() -> list[Any]:
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # numpy 1 and numpy 2 write these
    dtypes = {type(np.dtype(kind)) for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")}
    return [*((scalar, name) for name in names), np.dtype, *dtypes]
