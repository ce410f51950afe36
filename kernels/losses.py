"""The public losses: one check at the door, weights, reduction, and the choice of implementation.

Units are the caller's. On crop fractions (0 to 1) the default wing loss never leaves its logarithm and is close to
5 |d|, on pixels it is a true wing: the parameters mean something only together with the unit.
"""

from __future__ import annotations

from functools import lru_cache
from numbers import Real

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kernels import reference
from kernels.family import DTYPES, PARAMETERS, PLAIN, REDUCTIONS, WEIGHTINGS, Loss, in_memory, transformed

_IMPLS = ("auto", "triton", "reference")
_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def wing_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    omega: float = 10.0,
    epsilon: float = 2.0,
    reduction: str = "batchmean",
    weighting: str = "input",
    impl: str = "auto",
) -> Tensor:
    """Wing loss (arXiv 1711.06753): omega ln(1 + |d| / epsilon) if |d| < omega, else |d| - C; d = pred - target.

    pred, target: equal shapes, any of float16, bfloat16, float32, float64, dtypes may differ. The loss is computed and
    returned in float32, or float64 if pred or target is float64; gradients have their tensor's dtype.
    weight: floating, broadcasts to pred. weighting "input" multiplies pred and target by it before the loss,
    "loss" multiplies the loss. Neither changes the reduction's denominator.
    reduction: "none", "sum", "mean" (over all elements), "batchmean" (sum over the size of the first dimension).
    An empty tensor gives 0, so that an empty batch adds nothing.
    impl: "auto" (the Triton kernel for CUDA tensors, plain torch elsewhere), "reference" (plain torch), "triton". The
    kernel is compiled for each set of parameters, which takes a second or less. A
    target or weight that requires a gradient, torch.func transforms, forward-mode AD and tensor subclasses take the
    plain torch formulas whatever impl says; a gradient of the gradient comes from them, too.
    Raises TypeError for tensors that are not floating, ValueError for wrong shapes, devices, parameters or options,
    RuntimeError for impl "triton" where Triton cannot run.
    """
    return _loss("wing", pred, target, weight, (omega, epsilon), reduction, weighting, impl)


def soft_wing_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    omega1: float = 2.0,
    omega2: float = 20.0,
    epsilon: float = 0.5,
    reduction: str = "batchmean",
    weighting: str = "input",
    impl: str = "auto",
) -> Tensor:
    """Soft wing loss: |d| if |d| < omega1, else omega2 ln(1 + |d| / epsilon) + B. The rest as in `wing_loss`."""
    return _loss("soft_wing", pred, target, weight, (omega1, omega2, epsilon), reduction, weighting, impl)


def smooth_l1_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    beta: float = 1.0,
    reduction: str = "mean",
    weighting: str = "input",
    impl: str = "auto",
) -> Tensor:
    """Smooth L1 loss: d^2 / (2 beta) if |d| < beta, else |d| - beta / 2. The rest as in `wing_loss`."""
    return _loss("smooth_l1", pred, target, weight, (beta,), reduction, weighting, impl)


def adaptive_wing_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    omega: float = 14.0,
    theta: float = 0.5,
    epsilon: float = 1.0,
    alpha: float = 2.1,
    reduction: str = "mean",
    weighting: str = "input",
    impl: str = "auto",
) -> Tensor:
    """Adaptive wing loss (arXiv 1904.07399), whose exponent is alpha - target. The rest as in `wing_loss`.

    Made for heatmaps: the target in 0 to 1. The paper's weighted loss map is weighting="loss"; "input" changes the
    target in the exponent too.
    """
    parameters = (omega, theta, epsilon, alpha)
    return _loss("adaptive_wing", pred, target, weight, parameters, reduction, weighting, impl)


def wing_loss_and_grad(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    scale: float | Tensor | None = None,
    omega: float = 10.0,
    epsilon: float = 2.0,
    reduction: str = "batchmean",
    weighting: str = "input",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`wing_loss` and its gradient for pred, without autograd: `pred.backward(grad)` does the rest.

    scale: a number or a 0-dimensional tensor, read on its device; multiplies the gradient, not the loss, before the
    gradient is rounded to pred's dtype (a loss scale, or 1 / accumulation steps).
    Returns (loss, grad), neither attached to a graph; the Triton kernel gives both in one launch. The rest as in
    `wing_loss`; reduction "none" is a ValueError.
    """
    return _loss_and_grad("wing", pred, target, weight, scale, (omega, epsilon), reduction, weighting, impl)


def soft_wing_loss_and_grad(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    scale: float | Tensor | None = None,
    omega1: float = 2.0,
    omega2: float = 20.0,
    epsilon: float = 0.5,
    reduction: str = "batchmean",
    weighting: str = "input",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`soft_wing_loss` and its gradient for pred, as `wing_loss_and_grad`."""
    parameters = (omega1, omega2, epsilon)
    return _loss_and_grad("soft_wing", pred, target, weight, scale, parameters, reduction, weighting, impl)


def smooth_l1_loss_and_grad(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    scale: float | Tensor | None = None,
    beta: float = 1.0,
    reduction: str = "mean",
    weighting: str = "input",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`smooth_l1_loss` and its gradient for pred, as `wing_loss_and_grad`."""
    return _loss_and_grad("smooth_l1", pred, target, weight, scale, (beta,), reduction, weighting, impl)


def adaptive_wing_loss_and_grad(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    scale: float | Tensor | None = None,
    omega: float = 14.0,
    theta: float = 0.5,
    epsilon: float = 1.0,
    alpha: float = 2.1,
    reduction: str = "mean",
    weighting: str = "input",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`adaptive_wing_loss` and its gradient for pred, as `wing_loss_and_grad`."""
    parameters = (omega, theta, epsilon, alpha)
    return _loss_and_grad("adaptive_wing", pred, target, weight, scale, parameters, reduction, weighting, impl)


def _loss(
    kind: str,
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    weighting: str,
    impl: str,
) -> Tensor:
    loss = _checked(kind, parameters, reduction, weighting, impl)
    _check_tensors(pred, target, weight)
    route = _route(pred, target, weight, impl)
    if route == "reference":
        return reference.loss_of(loss, pred, target, weight)
    from kernels import loss_launch, loss_operator

    if route == "operator":
        return torch.ops.wingbench.fused_loss(pred, target, weight, *loss)
    if torch.is_grad_enabled() and pred.requires_grad:
        return loss_operator.FusedLoss.apply(pred, target, weight, loss)
    return loss_launch.loss_of(loss, pred, target, weight)


@torch.no_grad()
def _loss_and_grad(
    kind: str,
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None,
    scale: float | Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    weighting: str,
    impl: str,
) -> tuple[Tensor, Tensor]:
    loss = _checked(kind, parameters, reduction, weighting, impl)
    if reduction == "none":
        raise ValueError("reduction is 'none'; wanted 'sum', 'mean' or 'batchmean', since one gradient is returned")
    _check_tensors(pred, target, weight)
    _check_scale(scale, pred)
    route = _route(pred, target, weight, impl, scale)
    if route == "reference":
        return reference.loss_and_gradient(loss, pred, target, weight, scale)
    from kernels import loss_launch

    factor, number = (scale, 1.0) if isinstance(scale, Tensor) else (None, 1.0 if scale is None else float(scale))
    if route == "operator":
        return torch.ops.wingbench.fused_loss_and_grad(pred, target, weight, factor, number, *loss)
    return loss_launch.loss_and_gradient(loss, pred, target, weight, factor, number)


def _route(pred: Tensor, target: Tensor, weight: Tensor | None, impl: str, scale: float | Tensor | None = None) -> str:
    """Which way to go: "reference", "operator" (to be traced) or "direct" (to be launched)."""
    if impl == "reference":
        return "reference"
    if impl == "auto" and pred.device.type != "cuda":
        return "reference"
    problem = _constant_problem(pred.device.type, pred.device.index)
    if problem is not None:
        if impl == "triton":
            raise RuntimeError(problem)
        return "reference"
    if torch.is_grad_enabled() and (target.requires_grad or (weight is not None and weight.requires_grad)):
        return "reference"
    if transformed():
        return "reference"
    if torch.compiler.is_compiling():
        return "reference" if _wraps(pred) or _wraps(target) or _wraps(weight) or _wraps(scale) else "operator"
    for tensor in (pred, target, weight, scale):
        if isinstance(tensor, Tensor) and not in_memory(tensor):
            return "reference"
    return "operator" if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() else "direct"


def _wraps(tensor: object) -> bool:
    """Whether `tensor` is a subclass that wraps others, such as DTensor; to Dynamo a plain tensor is plain."""
    if not isinstance(tensor, Tensor) or type(tensor) in PLAIN:
        return False
    return torch.compiler.is_dynamo_compiling() or is_traceable_wrapper_subclass(tensor)


def triton_problem(device: torch.device) -> str | None:
    """None where impl "triton" runs on tensors on `device`; else why it does not, in a sentence."""
    return _problem(device.type, device.index)


@lru_cache(maxsize=64)
def _problem(device: str, index: int | None) -> str | None:
    if device not in ("cpu", "cuda"):
        return f"impl is 'triton' and the tensors are on {device}; wanted CUDA tensors"
    try:
        from kernels import loss_launch, loss_operator  # noqa: F401  registers the operators
    except ImportError as error:
        return f"impl is 'triton' and Triton cannot be imported ({error}); install triton, or use impl='reference'"
    if device == "cpu" and not loss_launch.INTERPRETED:
        return (
            "impl is 'triton' and the tensors are on the CPU, where Triton runs in its interpreter alone: "
            "set the environment variable TRITON_INTERPRET=1 before Python starts, or use impl='reference'"
        )
    real = device == "cuda" and torch.cuda.is_available()  # one may be imagined, by FakeTensorMode
    if real and torch.version.hip is None and not loss_launch.INTERPRETED:
        capability = torch.cuda.get_device_capability(index)
        if capability < (8, 0):
            return f"impl is 'triton' and cuda:{index} has compute capability {capability}; wanted (8, 0) or more"
    return None


def _constant_problem(device: str, index: int | None) -> str | None:
    return _problem(device, index)


# What torch.compiler.assume_constant_result does, after an import of Dynamo (and Triton) that takes seconds
_constant_problem._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _checked(kind: str, parameters: tuple[float, ...], reduction: str, weighting: str, impl: str) -> Loss:
    if torch.compiler.is_compiling():  # Dynamo looks through the cache and says so
        return _validated(kind, parameters, reduction, weighting, impl)
    try:
        return _remembered(kind, parameters, reduction, weighting, impl)
    except TypeError:  # an argument that cannot be hashed
        return _validated(kind, parameters, reduction, weighting, impl)


def _validated(kind: str, parameters: tuple[float, ...], reduction: str, weighting: str, impl: str) -> Loss:
    check_options(reduction, weighting, impl, **dict(zip(PARAMETERS[kind], parameters, strict=True)))
    return Loss(kind, tuple(float(value) for value in parameters), reduction, weighting)


_remembered = lru_cache(maxsize=1024)(_validated)


def check_options(reduction: str, weighting: str, impl: str, **parameters: float) -> None:
    """Refuse options and parameters that no loss takes. Raises ValueError, TypeError."""
    for name, given, allowed in (
        ("reduction", reduction, REDUCTIONS),
        ("weighting", weighting, WEIGHTINGS),
        ("impl", impl, _IMPLS),
    ):
        if given not in allowed:
            raise ValueError(f"{name} is {given!r}; wanted one of {', '.join(map(repr, allowed))}")
    for name, value in parameters.items():
        if not _is_number(value):
            raise TypeError(f"{name} is a {type(value).__name__}; wanted a number")
        if not _SMALLEST <= value <= _LARGEST:
            raise ValueError(f"{name} is {value}; wanted a finite number greater than 0, in the range of float32")


def _check_tensors(pred: Tensor, target: Tensor, weight: Tensor | None) -> None:
    for name, tensor in (("pred", pred), ("target", target), ("weight", weight)):
        if tensor is None and name == "weight":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; wanted a tensor")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} is {tensor.dtype}; wanted float16, bfloat16, float32 or float64")
        if tensor.device != pred.device:
            raise ValueError(f"{name} is on {tensor.device}, pred on {pred.device}; wanted one device")
    if pred.shape != target.shape:
        raise ValueError(f"pred has shape {tuple(pred.shape)}, target {tuple(target.shape)}; wanted equal shapes")
    if weight is not None and not _broadcasts(weight, pred):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, which does not broadcast to pred's {tuple(pred.shape)}; "
            "a weight per landmark of (N, K, 2) is (N, K, 1)"
        )


def _check_scale(scale: float | Tensor | None, pred: Tensor) -> None:
    if isinstance(scale, Tensor):
        if scale.dim() != 0 or not scale.is_floating_point():
            raise ValueError(
                f"scale is a {scale.dtype} tensor of shape {tuple(scale.shape)}; wanted a 0-dim floating one"
            )
        if scale.device != pred.device:
            raise ValueError(f"scale is on {scale.device}, pred on {pred.device}; wanted one device")
    elif scale is not None and not _is_number(scale):
        raise TypeError(f"scale is a {type(scale).__name__}; wanted a number or a 0-dimensional tensor")


def _is_number(value: object) -> bool:
    return isinstance(value, Real)


def _broadcasts(weight: Tensor, pred: Tensor) -> bool:
    sizes = zip(reversed(weight.shape), reversed(pred.shape), strict=False)
    return weight.dim() <= pred.dim() and all(w in (p, 1) for w, p in sizes)
