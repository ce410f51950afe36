"""The fused losses inside everything that torch can wrap around an operation.

Each test compares impl="triton" with the plain formulas under the same wrapping; how right the numbers themselves are
is tested elsewhere. Gradients in float32 may differ by 64 ulp (7.6e-6), the adaptive wing's budget, hence RTOL.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import kernels

pytest.importorskip("triton", reason="there is no Triton here: only the formulas could run")

from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from kernels import loss_launch, loss_operator, losses  # noqa: F401  registers the operators

RTOL, ATOL = 1e-5, 1e-6
ULP = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: RTOL, torch.float64: 1e-12}
LOSSES = {
    "wing": (kernels.wing_loss, kernels.wing_loss_and_grad),
    "soft_wing": (kernels.soft_wing_loss, kernels.soft_wing_loss_and_grad),
    "smooth_l1": (kernels.smooth_l1_loss, kernels.smooth_l1_loss_and_grad),
    "adaptive_wing": (kernels.adaptive_wing_loss, kernels.adaptive_wing_loss_and_grad),
}
REDUCTIONS = ("none", "sum", "mean", "batchmean")
KINK = {"wing": 10.0, "soft_wing": 2.0, "smooth_l1": 1.0, "adaptive_wing": 0.5}
OPERATORS = torch.ops.wingbench
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()


def face(name: str, device: torch.device, batch: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """(pred, target), differences of both signs on both sides of the kink, none within 1 % of it or of 0."""
    target = torch.rand(batch, 4, 2, dtype=torch.float64)
    factor = torch.tensor([0.3, -0.6, 0.9, -1.4, 2.0, -3.0])[torch.randint(6, (batch, 4, 2))]
    pred = target + KINK[name] * factor * (1 + 0.02 * torch.rand(batch, 4, 2))
    return pred.to(device, dtype), target.to(device, dtype)


def close(found: Any, wanted: Any, dtype: torch.dtype = torch.float32) -> None:
    torch.testing.assert_close(found, wanted, rtol=ULP[dtype], atol=min(ATOL, ULP[dtype]))


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def compiled(function: Callable[..., Any], backend: str = "aot_eager", **options: Any) -> Callable[..., Any]:
    """With aot_eager where generated code would only cost time: everything up to it is traced all the same."""
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def both(name: str, **options: Any) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """(fused, formulas): the same loss as functions of (pred, target, weight)."""
    function = LOSSES[name][0]
    return (
        lambda *tensors: function(*tensors, impl="triton", **options),
        lambda *tensors: function(*tensors, impl="reference", **options),
    )


# ---------------------------------------------------------------------------------------------- the operators


def opcheck_cases() -> dict[str, Callable[[torch.device], tuple[str, tuple[Any, ...]]]]:
    wing = ("wing", [10.0, 2.0])

    def case(operator: str, form: str, reduction: str, weight: tuple[int, ...] | None, *extra: Any) -> Any:
        def build(device: torch.device) -> tuple[str, tuple[Any, ...]]:
            pred, target = face("wing", device)
            pred = {
                "contiguous": lambda: pred,
                "permuted": lambda: pred.permute(1, 0, 2).contiguous().permute(1, 0, 2),
                "expanded": lambda: pred[:1].expand(3, 4, 2),
                "sliced": lambda: pred.repeat(1, 1, 2)[..., ::2],
                "bfloat16": lambda: pred.bfloat16(),
                "empty": lambda: pred[:0],
            }[form]()
            target = target[: len(pred)]
            w = None if weight is None else torch.rand(weight, device=device)
            if operator == "fused_loss":
                pred = pred.detach().requires_grad_()
            given = tuple(torch.tensor(value, device=device) if value == 0.5 else value for value in extra)
            if extra == ("each",):
                given = (torch.rand(pred.shape, device=device),)
            return operator, (pred, target, w, *given, *wing, reduction, "input")

        return build

    return {
        "the usual one": case("fused_loss", "contiguous", "batchmean", None),
        "dense in another order: outputs have its strides": case("fused_loss", "permuted", "none", (4, 1)),
        "overlapping: outputs cannot have its strides": case("fused_loss", "expanded", "none", None),
        "gaps: outputs are contiguous": case("fused_loss", "sliced", "mean", (3, 1, 1)),
        "mixed dtypes, a weight for each": case("fused_loss", "bfloat16", "sum", (3, 4, 2)),
        "nothing": case("fused_loss", "empty", "mean", None),
        "gradient": case("fused_loss_gradient", "contiguous", "batchmean", (), 0.5),
        "gradient, permuted": case("fused_loss_gradient", "permuted", "mean", (4, 1), 0.5),
        "gradient, upstream for each": case("fused_loss_gradient", "expanded", "none", None, "each"),
        "both": case("fused_loss_and_grad", "contiguous", "batchmean", (4, 2), None, 1.0),
        "both, permuted, scaled on the device": case("fused_loss_and_grad", "permuted", "sum", None, 0.5, 2.0),
        "both, 16 bits": case("fused_loss_and_grad", "bfloat16", "mean", None, None, 2.0),
    }


@pytest.mark.parametrize("case", opcheck_cases())
def test_opcheck_finds_schema_fake_kernel_and_autograd_in_order(case, device):
    operator, arguments = opcheck_cases()[case](device)
    torch.library.opcheck(getattr(OPERATORS, operator).default, arguments)


@pytest.mark.parametrize("case", opcheck_cases())
def test_the_fake_kernel_foretells_shapes_strides_and_dtypes(case, device):  # strides are not opcheck's business
    operator, arguments = opcheck_cases()[case](device)
    with FakeTensorMode() as mode:
        fake = (mode.from_tensor(each) if isinstance(each, Tensor) else each for each in arguments)
        foretold = getattr(OPERATORS, operator)(*fake)
    real = getattr(OPERATORS, operator)(*arguments)

    def looks(outputs: Tensor | tuple[Tensor, ...]) -> list[tuple[Any, ...]]:
        found = outputs if isinstance(outputs, tuple) else (outputs,)
        return [(each.shape, each.stride(), each.dtype, each.device) for each in found]

    assert looks(foretold) == looks(real)


# ---------------------------------------------------------------------------------------------- torch.compile


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_loss_has_the_eager_ones_gradient(dynamic, backend, device):
    fused, formulas = both("wing")
    function = compiled(fused, backend, dynamic=dynamic)
    for batch in (3, 5):
        pred, target = face("wing", device, batch)
        pred, again = leaf(pred), leaf(pred)
        loss, wanted = function(pred, target), formulas(again, target)
        (3 * loss).backward()
        (3 * wanted).backward()
        close(loss, wanted)
        close(pred.grad, again.grad)


@pytest.mark.parametrize(
    ("name", "reduction"),
    [
        *((name, "mean") for name in LOSSES),
        ("wing", "none"),  # another kernel, another shape of loss and upstream gradient
    ],
)
def test_every_loss_compiles_with_every_form_of_weight_and_dynamic_shapes(name, reduction, device):
    fused, formulas = both(name, reduction=reduction)
    function = compiled(fused, dynamic=True)
    for batch, shape in ((3, ()), (3, (4, 1)), (5, (5, 4, 1)), (6, (6, 1, 1)), (7, (7, 4, 2))):
        pred, target = face(name, device, batch)
        pred, again, weight = leaf(pred), leaf(pred), 0.9 + 0.1 * torch.rand(shape, device=device)
        loss, wanted = function(pred, target, weight), formulas(again, target, weight)
        upstream = torch.randn_like(loss)
        loss.backward(upstream)
        wanted.backward(upstream)
        close(loss, wanted)
        close(pred.grad, again.grad)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_grad_compiles_with_a_scale_that_changes_on_the_device(name, dynamic, device):
    function = LOSSES[name][1]
    traced = compiled(lambda p, t, s: function(p, t, scale=s, impl="triton"), dynamic=dynamic)
    for batch, scale in ((3, 1.0), (3, 1024.0), (5, 0.5)):
        pred, target = face(name, device, batch)
        found = traced(pred, target, torch.tensor(scale, device=device))
        close(found, function(pred, target, scale=scale, impl="reference"))


def test_as_many_compilations_as_kinds_of_batch_not_as_batches(device):
    counter = CompileCounterWithBackend("aot_eager")
    fused, formulas = both("soft_wing")
    function = torch.compile(fused, fullgraph=True, backend=counter)
    for batch in (8, 3, 5, 13, 64, 2, 1, 7):
        pred, target = face("soft_wing", device, batch)
        pred = leaf(pred)
        function(pred, target).backward()
        close(pred.grad, torch.autograd.grad(formulas(again := leaf(pred), target), again)[0])
    assert counter.frame_count <= 3  # the first size, any size, and 1, which torch always takes for a constant


def test_changed_parameters_reach_a_compiled_loss(device):
    counter = CompileCounterWithBackend("aot_eager")
    pred, target = face("wing", device)
    function = torch.compile(
        lambda omega, epsilon: kernels.wing_loss(pred, target, omega=omega, epsilon=epsilon, impl="triton"),
        fullgraph=True,
        backend=counter,
    )
    compilations = []
    for _ in range(2):
        for omega, epsilon in ((10.0, 2.0), (5.0, 0.5), (3, 1)):
            wanted = kernels.wing_loss(pred, target, omega=omega, epsilon=epsilon, impl="reference")
            close(function(omega, epsilon), wanted)
        compilations.append(counter.frame_count)
    assert compilations[0] == compilations[1]  # what was seen before is found again


def test_a_module_with_the_loss_inside_compiles_and_trains_like_the_eager_one(device):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 2)
            self.loss = kernels.WingLoss(impl="triton")

        def forward(self, inputs: Tensor, target: Tensor) -> Tensor:
            return self.loss(self.head(inputs), target)

    eager = Model().to(device)
    other = Model().to(device)
    other.load_state_dict(eager.state_dict())
    function = compiled(other, "inductor")
    for model, call in ((eager, eager), (other, function)):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            call(*face("wing", device)).backward()
            optimizer.step()
    close(other.head.weight, eager.head.weight)
    assert not torch.equal(eager.head.weight, Model().to(device).head.weight)


def test_compiling_warns_of_nothing_that_an_operation_of_torch_does_not_warn_of(device):
    def warned(function: Callable[..., Tensor]) -> set[tuple[type[Warning], str]]:
        torch._dynamo.reset()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            traced = compiled(function, "inductor", dynamic=True)
            for batch in (3, 5):
                pred, target = face("wing", device, batch)
                traced(leaf(pred), target).backward()
        return {(each.category, str(each.message)) for each in found}

    # A matrix product, too, is a call that Inductor leaves alone
    plain = warned(lambda pred, target: nn.functional.smooth_l1_loss(pred, target) + (pred[0] @ target[0].mT).sum())
    for name in LOSSES:
        assert warned(both(name)[0]) <= plain


def test_a_loss_compiles_under_autocast(device):
    pred, target = face("wing", device)
    head = nn.Linear(2, 2, device=device)

    def step(inputs: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return kernels.wing_loss(head(inputs), target, impl="triton")

    eager = step(pred)
    (wanted,) = torch.autograd.grad(eager, head.weight)
    loss = compiled(step)(pred)
    (found,) = torch.autograd.grad(loss, head.weight)
    assert loss.dtype == torch.float32
    close(loss, eager)
    close(found, wanted, torch.bfloat16)


def test_an_empty_batch_runs_through_what_was_compiled_for_others(device):
    function = compiled(both("wing")[0], dynamic=True)
    for batch in (4, 0):
        pred, target = face("wing", device, batch)
        pred = leaf(pred)
        loss = function(pred, target)
        loss.backward()
        assert pred.grad.shape == pred.shape
    assert loss == 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_loss_gives_target_and_weight_their_gradients(name, device):
    fused, formulas = both(name)
    pred, target = face(name, device)
    weight = torch.rand(4, 1, device=device)
    # Of tensors made inside, too: a target that is computed, a weight that is learned
    tensors = [leaf(pred), leaf(target), leaf(weight)]

    def learned(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda p, t, w: function(p, 0.5 * t, w.sigmoid())

    found = torch.autograd.grad(compiled(learned(fused))(*tensors), tensors)
    close(found, torch.autograd.grad(learned(formulas)(*tensors), tensors))


def test_a_wrong_shape_is_the_same_error_when_compiled(device):
    pred, target = face("wing", device)
    with pytest.raises(ValueError, match="wanted equal shapes"):
        torch.compile(both("wing")[0], backend="aot_eager")(pred, target[:2])


# ---------------------------------------------------------------------------------------------- torch.export


class Exported(nn.Module):
    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return kernels.wing_loss(pred, target, impl="triton")


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_program_holds_the_operator_and_runs_for_other_batches(strict, device):
    batch = torch.export.Dim("batch")
    shapes = {"pred": {0: batch}, "target": {0: batch}}
    program = torch.export.export(Exported(), face("wing", device), dynamic_shapes=shapes, strict=strict)
    for each in (program, program.run_decompositions(), reloaded(program)):
        called = [node.target for node in each.graph.nodes if node.op == "call_function"]
        assert OPERATORS.fused_loss.default in called
        pred, target = face("wing", device, 7)
        pred, again = leaf(pred), leaf(pred)
        loss, wanted = each.module()(pred, target), kernels.wing_loss(again, target, impl="reference")
        close(loss, wanted)
    loss.backward()
    wanted.backward()
    close(pred.grad, again.grad)


def reloaded(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


@pytest.mark.parametrize("wanting", ["target", "weight"])
def test_an_exported_program_gives_target_and_weight_no_wrong_gradient(wanting, device):
    # At export nothing said that they would want one, so the operator is in the graph
    class Model(nn.Module):
        def forward(self, pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
            return kernels.adaptive_wing_loss(pred, target, weight, impl="triton")

    pred, target = face("adaptive_wing", device)
    tensors = {"pred": pred, "target": target, "weight": torch.rand(4, 1, device=device)}
    program = torch.export.export(Model(), tuple(tensors.values()))
    tensors["pred"].requires_grad_()
    tensors[wanting].requires_grad_()
    loss = program.module()(*tensors.values())
    with pytest.raises(RuntimeError, match="has no gradient for target and weight; trace it with impl='reference'"):
        loss.backward()


# ---------------------------------------------------------------------------------------------- mixed precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_autocast_hands_over_16_bits_and_gets_a_float32_loss(name, dtype, device):
    pred, target = face(name, device)
    head = nn.Linear(2, 2, device=device)
    nn.init.eye_(head.weight)
    with torch.autocast(device.type, dtype):
        output = head(pred)
        output.retain_grad()
        with Called() as seen:
            loss = LOSSES[name][0](output, target, impl="triton")
    loss.backward()
    assert output.dtype == output.grad.dtype == dtype
    assert loss.dtype == torch.float32
    assert seen.operators == ["wingbench.fused_loss.default"]  # nothing is converted before
    again = leaf(output)
    wanted = LOSSES[name][0](again, target, impl="reference")
    wanted.backward()
    close(loss, wanted)
    close(output.grad, again.grad, dtype)  # 1 ulp: the interpreter cuts bfloat16 off instead of rounding


class Called(TorchDispatchMode):
    """The names of the operators that are called under it."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operators.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", ["overflow", "nan"])
def test_a_gradient_scaler_skips_the_step_of_a_bad_batch_alone(bad, dtype, device):
    pred, target = face("wing", device, dtype=dtype)
    parameter = nn.Parameter(torch.zeros((), device=device))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0)

    def step(inputs: Tensor) -> None:
        optimizer.zero_grad()
        loss = kernels.wing_loss((inputs + parameter).to(dtype), target, impl="triton")
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    step(pred)
    before = parameter.item()
    assert before != 0
    if bad == "nan":
        pred[1, 2, 0] = torch.nan
    else:  # a slope of nearly 5 / 3: no dtype holds so much of it
        pred = target + 0.01
        scaler.update(3e38)
    scale = scaler.get_scale()
    step(pred)
    assert parameter.item() == before
    assert scaler.get_scale() == scale / 2
    scaler.update(1024.0)
    step(target + 0.01)
    assert parameter.item() != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_loss_scale_multiplies_the_gradient_before_it_is_rounded(dtype, device):
    pred, target = face("wing", device, dtype=dtype)
    scale = 2.0**12
    pred, other = leaf(pred), pred.detach()
    (kernels.wing_loss(pred, target, impl="triton") * scale).backward()
    _, direct = kernels.wing_loss_and_grad(other, target, scale=scale, impl="triton")
    assert torch.equal(pred.grad, direct)


# ---------------------------------------------------------------------------------------------- several processes


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What both of two processes found out, by name (see the script)."""
    store = tmp_path_factory.mktemp("store") / "store"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    script = ROOT / "tests" / "two_processes.py"
    command = [sys.executable, str(script), str(store)]
    processes = [
        subprocess.Popen([*command, str(rank)], env=environment, text=True, stdout=subprocess.PIPE) for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    first, second = (dict(line.rsplit(": ", 1) for line in output.splitlines()) for output in outputs)
    return {name: f"{first[name]}, {second.get(name)}" for name in first}


@pytest.mark.parametrize(
    "what",
    [
        "DDP: the gradient is the single process's",
        "DDP: the ranks agree",
        "DTensor: loss and gradient are the whole tensor's",
        "DTensor, compiled: loss and gradient are the whole tensor's",
    ],
)
def test_two_processes(what, two_processes):
    assert two_processes.get(what) == "yes, yes"  # nothing where one of them ended before


# ---------------------------------------------------------------------------------------------- autograd


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_first_and_second_gradients_are_those_of_finite_differences(name, reduction, device):
    pred, target = face(name, device, 2, torch.float64)
    pred, target = leaf(pred[:, :2]), target[:, :2]
    weight = torch.tensor([[0.7], [1.0]], dtype=torch.float64, device=device)
    fused = both(name, reduction=reduction, weighting="loss")[0]
    assert torch.autograd.gradcheck(lambda x: fused(x, target, weight), pred)
    assert torch.autograd.gradgradcheck(lambda x: fused(x, target, weight), pred, fast_mode=True)


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_penalty_on_the_gradient_has_the_formulas_gradient(name, reduction, device):
    pred, target = face(name, device)
    gradients = []
    for function in both(name, reduction=reduction):
        given = leaf(pred)
        loss = function(given, target).sum()
        (slope,) = torch.autograd.grad(loss, given, create_graph=True)
        (loss + slope.square().sum()).backward()
        gradients.append(given.grad)
    close(*gradients)


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
@pytest.mark.parametrize("dtype", ULP)
def test_each_backward_of_a_retained_graph_is_right_and_leaves_the_earlier_ones_alone(dtype, reduction, device):
    pred, target = face("wing", device, dtype=dtype)
    fused, formulas = both("wing", reduction=reduction)
    pred, again = leaf(pred), leaf(pred)
    loss, wanted = fused(pred, target), formulas(again, target)
    found, kept = [], []
    # 1 is the case that is not computed again, first or later
    for factor in (1.0, -3.0, 1.0):
        upstream = torch.full_like(loss, factor)
        (gradient,) = torch.autograd.grad(loss, pred, upstream, retain_graph=True)
        (right,) = torch.autograd.grad(wanted, again, upstream, retain_graph=True)
        close(gradient, right, dtype)
        found.append(gradient)
        kept.append(gradient.clone())
    loss.sum().backward()
    assert all(torch.equal(*pair) for pair in zip(found, kept, strict=True))
    close(pred.grad, found[0], dtype)


@pytest.mark.parametrize("first", [1.0, 2.0])
def test_a_gradient_that_was_overwritten_does_not_spoil_the_next_backward(first, device):
    pred, target = face("wing", device)
    pred = leaf(pred)
    loss = kernels.wing_loss(pred, target, impl="triton")
    (loss * first).backward(retain_graph=True)
    wanted = pred.grad / first
    pred.grad.zero_()
    loss.backward()
    close(pred.grad, wanted)


def test_a_graph_that_was_freed_says_so(device):
    pred, target = face("wing", device)
    pred = leaf(pred)
    loss = kernels.wing_loss(pred, target, impl="triton")
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("upstream", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backward_is_right_after_pred_was_freed(dtype, upstream, device):
    pred, target = face("wing", device, dtype=dtype)
    start = leaf(pred)
    moved = start * 1
    loss = kernels.wing_loss(moved, target.clone(), impl="triton")
    del moved
    torch.full_like(pred, torch.nan)  # what would take freed memory
    (upstream * loss).backward()
    again = leaf(pred)
    (upstream * kernels.wing_loss(again, target, impl="reference")).backward()
    close(start.grad, again.grad, dtype)


@pytest.mark.parametrize("overwritten", ["pred", "target", "weight"])
@pytest.mark.parametrize("upstream", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backward_after_an_input_was_overwritten_is_right_or_an_error(dtype, upstream, overwritten, device):
    pred, target = face("wing", device, dtype=dtype)
    weight = torch.rand(4, 1, dtype=dtype, device=device)
    again = leaf(pred)
    (upstream * kernels.wing_loss(again, target, weight, impl="reference")).backward()
    start = leaf(pred)
    tensors = {"pred": start * 1, "target": target, "weight": weight}
    loss = kernels.wing_loss(*tensors.values(), impl="triton")
    with torch.no_grad():
        tensors[overwritten].add_(1.0)
    error = None
    try:
        (upstream * loss).backward()
    except RuntimeError as raised:
        error = str(raised)
    if error is None:
        close(start.grad, again.grad, dtype)
    else:
        assert "modified by an inplace operation" in error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backward_keeps_the_inputs_and_one_gradient_and_nothing_else(dtype, device):
    pred, target = face("wing", device, dtype=dtype)
    pred, weight = leaf(pred), torch.rand(4, 1, device=device)
    loss = kernels.wing_loss(pred, target, weight, impl="triton")
    node = loss.grad_fn
    assert [each.data_ptr() for each in node.saved_tensors] == [each.data_ptr() for each in (pred, target, weight)]
    kept = [value for value in vars(node).values() if isinstance(value, Tensor)]
    assert [(each.shape, each.dtype) for each in kept] == [(pred.shape, dtype)] * (dtype != torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("upstream", [1.0, 3.0])
def test_hooks_on_saved_tensors_see_them_and_may_move_them(upstream, dtype, device):
    pred, target = face("wing", device, dtype=dtype)
    weight = torch.rand(4, 1, device=device)
    gradients, packed = [], []
    for function in both("wing"):
        given = leaf(pred)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: (packed.append(tensor.shape), tensor.clone())[1], lambda tensor: tensor.clone()
        ):
            loss = function(given, target, weight)
        if len(gradients) == 0:
            assert packed == [pred.shape, target.shape, weight.shape]
        (upstream * loss).backward()
        gradients.append(given.grad)
    close(*gradients, dtype)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpointed_loss_has_the_same_gradient(dtype, reentrant, device):
    pred, target = face("wing", device, dtype=dtype)
    gradients = []
    for function in both("wing"):
        given = leaf(pred)
        loss = checkpoint(lambda x, f=function: f(2 * x, target), given, use_reentrant=reentrant)
        (3 * loss).backward()
        gradients.append(given.grad)
    close(*gradients, dtype)


@pytest.mark.parametrize("weighting", ["input", "loss"])
@pytest.mark.parametrize("impl", ["triton", "auto"])
@pytest.mark.parametrize("name", LOSSES)
def test_target_and_weight_get_their_true_gradients(name, impl, weighting, device):
    function = LOSSES[name][0]
    tensors = [*face(name, device, dtype=torch.float64), torch.rand(4, 1, dtype=torch.float64, device=device)]
    for wanting in ([1], [2], [0, 1], [0, 2], [0, 1, 2]):
        given = [leaf(each) if place in wanting else each for place, each in enumerate(tensors)]
        wanted = [given[place] for place in wanting]
        found = torch.autograd.grad(function(*given, weighting=weighting, impl=impl), wanted)
        right = torch.autograd.grad(function(*given, weighting=weighting, impl="reference"), wanted)
        close(found, right, torch.float64)


def test_no_graph_where_no_gradient_is_wanted(device):
    pred, target = face("wing", device)
    assert not kernels.wing_loss(pred, target, impl="triton").requires_grad
    with torch.no_grad():
        assert not kernels.wing_loss(leaf(pred), target, impl="triton").requires_grad
    loss, gradient = kernels.wing_loss_and_grad(leaf(pred), leaf(target), impl="triton")
    assert not loss.requires_grad
    assert not gradient.requires_grad
    with torch.inference_mode():
        close(kernels.wing_loss(pred + 0, target, impl="triton"), kernels.wing_loss(pred, target, impl="reference"))


def test_what_inference_mode_left_behind_serves_training_after_it(device):
    pred, target = face("wing", device)
    with torch.inference_mode():
        kernels.wing_loss(pred, target, impl="triton")
        target, weight = target.clone(), torch.rand(4, 1, device=device)
    pred, again = leaf(pred), leaf(pred)
    (2 * kernels.wing_loss(pred, target, weight, impl="triton")).backward()
    (2 * kernels.wing_loss(again, target.clone(), weight.clone(), impl="reference")).backward()
    close(pred.grad, again.grad)


@pytest.mark.parametrize("name", LOSSES)
def test_float64_of_one_tensor_makes_all_arithmetic_float64(name, device):
    fused, formulas = both(name)
    pred, target = face(name, device, dtype=torch.float64)
    for given, against in ((pred, target), (pred.float(), target), (pred, target.float())):
        found, wanted = fused(given, against), formulas(given, against)
        assert found.dtype == torch.float64
        close(found, wanted, torch.float64)


# ---------------------------------------------------------------------------------------------- transforms

TRANSFORMS = {
    "grad": lambda f, x, v: torch.func.grad(f)(x),
    "grad of grad": lambda f, x, v: torch.func.grad(lambda y: torch.func.grad(f)(y).square().sum())(x),
    "vjp": lambda f, x, v: torch.func.vjp(f, x)[1](v.sum())[0],
    "jvp": lambda f, x, v: torch.func.jvp(f, (x,), (v,)),
    "vmap": lambda f, x, v: torch.func.vmap(f)(torch.stack([x, v])),
    "vmap of grad": lambda f, x, v: torch.func.vmap(torch.func.grad(f))(torch.stack([x, v])),
    "jacrev": lambda f, x, v: torch.func.jacrev(lambda y: f(y) * y)(x),
    "jacfwd": lambda f, x, v: torch.func.jacfwd(lambda y: f(y) * y)(x),
    "hessian": lambda f, x, v: torch.func.hessian(f)(x),
}
EAGER_TRANSFORMS = {
    "linearize": lambda f, x, v: torch.func.linearize(f, x)[1](v),
    "functionalize": lambda f, x, v: torch.func.functionalize(f)(x),
    "jacobian, vectorized": lambda f, x, v: torch.autograd.functional.jacobian(lambda y: f(y) * y, x, vectorize=True),
    "hessian, vectorized": lambda f, x, v: torch.autograd.functional.hessian(f, x, vectorize=True),
    "jacobian, forward": lambda f, x, v: torch.autograd.functional.jacobian(
        f, x, vectorize=True, strategy="forward-mode"
    ),
}


def dual(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    with forward_ad.dual_level():
        value = forward_ad.unpack_dual(function(forward_ad.make_dual(x, v)))
        return value.primal, value.tangent


TRANSFORMS["forward-mode"] = dual


@pytest.mark.parametrize("transform", TRANSFORMS | EAGER_TRANSFORMS)
@pytest.mark.parametrize("name", LOSSES)
def test_transforms_give_what_they_give_for_the_formulas(name, transform, device):
    apply = (TRANSFORMS | EAGER_TRANSFORMS)[transform]
    pred, target = face(name, device)
    other = face(name, device)[0]
    weight = torch.rand(4, 1, device=device)
    fused, formulas = (lambda x, f=f: f(x, target, weight) for f in both(name))
    close(apply(fused, pred, other), apply(formulas, pred, other))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_inside_of_torch_compile_too(transform, device):
    pred, target = face("wing", device)
    other = face("wing", device)[0]
    fused, formulas = (lambda x, f=f: f(x, target) for f in both("wing"))
    found = compiled(lambda x, v: TRANSFORMS[transform](fused, x, v))(pred, other)
    close(found, TRANSFORMS[transform](formulas, pred, other))


@pytest.mark.parametrize("inside", [False, True])
def test_loss_and_grad_under_transforms_is_the_formulas(inside, device):
    pred, target = face("wing", device)
    other = face("wing", device)[0]

    def transformed(impl: str) -> Callable[..., Any]:
        def pair(x: Tensor) -> tuple[Tensor, Tensor]:
            return kernels.wing_loss_and_grad(x, target, impl=impl)

        return lambda x, v: (torch.func.vmap(pair)(torch.stack([x, v])), torch.func.jvp(pair, (x,), (v,)))

    found = compiled(transformed("triton")) if inside else transformed("triton")
    close(found(pred, other), transformed("reference")(pred, other))


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_many_upstream_gradients_at_once(dtype, reduction, device):
    # The forward pass was an ordinary one: backward meets tensors that have no memory of their own
    pred, target = face("wing", device, dtype=dtype)
    found = []
    for function in both("wing", reduction=reduction):
        given = leaf(pred)
        loss = function(given, target)
        torch.manual_seed(2)
        many = torch.randn(3, *loss.shape, device=device)
        (at_once,) = torch.autograd.grad(loss, given, many, is_grads_batched=True, retain_graph=True)
        mapped = torch.func.vmap(lambda v, x=given, y=loss: torch.autograd.grad(y, x, v, retain_graph=True)[0])(many)
        close(mapped, at_once, dtype)
        (single,) = torch.autograd.grad(loss, given, many[1])
        close(single, at_once[1], dtype)
        found.append(at_once)
    close(*found, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tangent_of_the_upstream_gradient_is_not_lost(dtype, device):
    pred, target = face("wing", device, dtype=dtype)
    found = []
    for function in both("wing"):
        given = leaf(pred)
        loss = function(given, target)
        with forward_ad.dual_level():
            upstream = forward_ad.make_dual(torch.ones_like(loss), torch.full_like(loss, 3.0))
            (gradient,) = torch.autograd.grad(loss, given, upstream)
            tangent = forward_ad.unpack_dual(gradient).tangent
        assert tangent is not None
        found.append(tangent)
    close(*found, dtype)


# ---------------------------------------------------------------------------------------------- other tensors


class Wrapped(Tensor):
    """A subclass without memory of its own, as DTensor or a quantised tensor is."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def unwrapped(value: Any) -> Any:
            return value.inner if isinstance(value, cls) else value

        assert not str(function).startswith("wingbench")  # which a subclass cannot know
        args, kwargs = torch.utils._pytree.tree_map(unwrapped, (args, kwargs or {}))
        result = function(*args, **kwargs)
        return torch.utils._pytree.tree_map_only(Tensor, cls, result)


class Noted(Tensor):
    """A subclass that looks at the functions it is given to."""

    seen: list[Any] = []  # noqa: RUF012  of the class

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(function)
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("place", ["pred", "target", "weight", "scale", "upstream"])
def test_a_subclass_without_memory_gets_the_formulas(place, device):
    tensors = dict(zip(("pred", "target"), face("wing", device), strict=True), weight=torch.rand(4, 1, device=device))
    number = torch.tensor(3.0, device=device)
    pred, target, weight = (Wrapped(each) if name == place else each for name, each in tensors.items())
    wanted = kernels.wing_loss_and_grad(*tensors.values(), scale=3.0, impl="reference")
    if place != "upstream":
        scale = Wrapped(number) if place == "scale" else number
        found = kernels.wing_loss_and_grad(pred, target, weight, scale=scale, impl="triton")
        close(tuple(each.inner if isinstance(each, Wrapped) else each for each in found), wanted)
    if place != "scale":
        pred = pred.detach().requires_grad_()
        loss = kernels.wing_loss(pred, target, weight, impl="triton")
        upstream = number if type(loss) is Tensor and place != "upstream" else Wrapped(number)
        (gradient,) = torch.autograd.grad(loss, pred, upstream)
        close(gradient.inner if isinstance(gradient, Wrapped) else gradient, wanted[1])


LAZY = {
    "negated": lambda tensor: torch._neg_view(-tensor),  # what .conj().imag of a complex tensor is
    "zero": lambda tensor: torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype, device=tensor.device),
}


@pytest.mark.parametrize("lazy", LAZY)
@pytest.mark.parametrize("place", ["pred", "target", "weight", "scale", "upstream"])
def test_a_tensor_whose_memory_does_not_hold_its_numbers_counts_for_them(place, lazy, device):
    tensors = dict(zip(("pred", "target"), face("wing", device), strict=True), weight=torch.rand(4, 1, device=device))
    number = torch.tensor(3.0, device=device)
    made = {name: LAZY[lazy](each) if name == place else each for name, each in tensors.items()}
    factor = LAZY[lazy](number) if place in ("scale", "upstream") else number
    found, wanted = (
        kernels.wing_loss_and_grad(*made.values(), scale=factor, impl=impl) for impl in ("triton", "reference")
    )
    close(found, wanted)
    leaves = [made["pred"].detach().requires_grad_() for _ in range(2)]
    found, wanted = (
        torch.autograd.grad(kernels.wing_loss(given, made["target"], made["weight"], impl=impl), given, factor)
        for given, impl in zip(leaves, ("triton", "reference"), strict=True)
    )
    close(found, wanted)


def test_a_subclass_that_looks_at_functions_sees_those_of_the_formulas(device):
    pred, target = face("wing", device)
    Noted.seen.clear()
    given = pred.clone().as_subclass(Noted).requires_grad_()
    loss = kernels.wing_loss(given, target, impl="triton")
    loss.backward()
    assert isinstance(loss, Noted)
    assert Tensor.log1p in Noted.seen
    again = leaf(pred)
    kernels.wing_loss(again, target, impl="reference").backward()
    assert torch.equal(given.grad, again.grad)


def test_a_parameter_is_no_subclass(device):
    pred, target = face("wing", device)
    loss = kernels.wing_loss(nn.Parameter(pred), target, impl="triton")
    assert isinstance(loss.grad_fn, loss_operator.FusedLoss._backward_cls)


def test_fake_tensors_have_the_real_ones_shapes_and_dtypes(device):
    for name, dtype in (("wing", torch.bfloat16), ("adaptive_wing", torch.float64)):
        function, pair = LOSSES[name]
        pred, target = face(name, device, dtype=dtype)
        pred = pred.permute(1, 0, 2).contiguous().permute(1, 0, 2)
        for reduction in ("none", "mean"):
            real = function(pred, target, reduction=reduction, impl="triton")
            with FakeTensorMode() as mode:
                fake = mode.from_tensor(pred).requires_grad_(), mode.from_tensor(target)
                loss = function(*fake, reduction=reduction, impl="triton")
                loss.sum().backward()
            assert isinstance(loss, FakeTensor)
            assert (loss.shape, loss.dtype, loss.stride()) == (real.shape, real.dtype, real.stride())
            assert isinstance(fake[0].grad, FakeTensor)
        real = pair(pred, target, impl="triton")
        with FakeTensorMode() as mode:
            found = pair(mode.from_tensor(pred), mode.from_tensor(target), impl="triton")
        assert [each.dtype for each in found] == [each.dtype for each in real]


def test_a_cuda_device_can_be_imagined_where_there_is_none():
    code = """
import torch, kernels
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    pred, target = (torch.empty(3, 4, 2, device="cuda") for _ in range(2))
    print(*(kernels.wing_loss(pred, target, impl=impl).device for impl in ("reference", "auto", "triton")))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split() == ["cuda:0"] * 3


def test_meta_tensors_take_the_formulas_or_a_sentence():
    pred, target = torch.empty(2, 3, 4, 2, device="meta")
    assert kernels.wing_loss(pred, target).device.type == "meta"
    assert OPERATORS.fused_loss(pred, target, None, "wing", [10.0, 2.0], "mean", "input").shape == ()
    with pytest.raises(RuntimeError, match="impl is 'triton' and the tensors are on meta; wanted CUDA tensors"):
        kernels.wing_loss(pred, target, impl="triton")


@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
def test_what_make_fx_traces_computes_the_gradient_for_other_tensors(tracing, device):
    def gradient(pred: Tensor, target: Tensor) -> Tensor:
        pred = pred.detach().requires_grad_()
        loss = kernels.wing_loss(pred, target, impl="triton")
        return torch.autograd.grad(loss, pred)[0]

    graph = make_fx(gradient, tracing_mode=tracing)(*face("wing", device))
    pred, target = face("wing", device)
    close(graph(pred, target), kernels.wing_loss_and_grad(pred, target, impl="reference")[1])


def test_a_dispatch_mode_sees_the_operators(device):
    pred, target = face("wing", device)
    pred = leaf(pred)
    with Called() as seen, FlopCounterMode(display=False):
        kernels.wing_loss(pred, target, impl="triton").backward()
        kernels.wing_loss_and_grad(pred, target, impl="triton")
    ours = [name for name in seen.operators if name.startswith("wingbench")]
    assert ours == [
        f"wingbench.{name}.default" for name in ("fused_loss", "fused_loss_gradient", "fused_loss_and_grad")
    ]
    close(pred.grad, kernels.wing_loss_and_grad(pred, target, impl="reference")[1])


def test_a_functional_tensor_computes_the_same(device):
    from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

    pred, target = face("wing", device)
    with FunctionalTensorMode():
        loss = kernels.wing_loss(*map(FunctionalTensor.to_functional, (pred, target)), impl="triton")
        close(torch._from_functional_tensor(loss.elem), kernels.wing_loss(pred, target, impl="reference"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_jit_trace_runs_for_other_batches(device):
    fused, formulas = both("wing", reduction="mean")
    function = torch.jit.trace(lambda pred, target: fused(pred, target), face("wing", device))
    assert "wingbench::fused_loss" in str(function.graph)
    pred, target = face("wing", device, 7)
    pred, again = leaf(pred), leaf(pred)
    function(pred, target).backward()
    formulas(again, target).backward()
    close(pred.grad, again.grad)


@pytest.mark.parametrize("impl", ["triton", "auto", "reference"])
def test_complex_tensors_are_refused(impl, device):
    pred, target = face("wing", device)
    for tensors in ((pred.cfloat(), target), (pred, target.cfloat()), (pred, target, target.cfloat())):
        for function in LOSSES["wing"]:
            with pytest.raises(TypeError, match=r"is torch\.complex64; wanted float16, bfloat16, float32 or float64"):
                function(*tensors, impl=impl)


# ---------------------------------------------------------------------------------------------- the host

SYNCHRONISING = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "nonzero")


@pytest.mark.parametrize("upstream", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["none", "batchmean"])
def test_nothing_is_read_back_to_the_host(reduction, dtype, upstream, device, monkeypatch):
    pred, target = face("wing", device, dtype=dtype)
    pred, weight, scale = leaf(pred), torch.rand(4, 1, device=device), torch.tensor(2.0, device=device)
    kernels.wing_loss(pred, target, weight, reduction=reduction, impl="triton").sum().backward()

    def reads(*_: Any, **__: Any) -> None:
        pytest.fail("a tensor is read by the host")

    launched = []
    # The interpreter reads, of course: what counts is everything up to the launch
    monkeypatch.setattr(loss_launch, "_run", lambda kernel, *_: launched.append(kernel))
    for name in SYNCHRONISING:
        monkeypatch.setattr(Tensor, name, reads)
    monkeypatch.setattr(torch, "equal", reads)
    monkeypatch.setattr(torch, "allclose", reads)
    loss = kernels.wing_loss(pred, target, weight, reduction=reduction, impl="triton")
    loss.backward(torch.ones_like(loss) if upstream is None else torch.full_like(loss, upstream))
    assert len(launched) == 2
    if reduction != "none":
        kernels.wing_loss_and_grad(pred, target, weight, scale=scale, impl="triton")
        assert len(launched) == 3


class Allocations(torch.overrides.TorchFunctionMode):
    """Names of the functions that returned memory which no argument of theirs has."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
            if result.untyped_storage().data_ptr() not in given:
                self.names.append(function.__name__)
        return result


def test_only_what_is_returned_is_allocated(device, monkeypatch):
    pred, target = face("wing", device)
    weight = torch.rand(4, 1, device=device)
    workspace = torch.empty(loss_launch.code.MAX_PROGRAMS, dtype=torch.float64), torch.zeros(1, dtype=torch.int32)
    monkeypatch.setattr(loss_launch, "_partials_and_ticket", lambda *_: workspace)
    monkeypatch.setattr(loss_launch, "_run", lambda *_: None)
    permuted = pred.permute(1, 0, 2).contiguous().permute(1, 0, 2)
    kernels.wing_loss_and_grad(pred, target, weight, impl="triton")  # makes what is made once
    for given in (pred, leaf(pred)):
        with Allocations() as made:
            kernels.wing_loss(given, target, weight, impl="triton")
        assert made.names == ["new_empty", "empty_like"][: 2 if given.requires_grad else 1]
    with Allocations() as made:
        kernels.wing_loss_and_grad(pred, target, weight, scale=2.0, impl="triton")
    assert made.names == ["new_empty", "empty_like"]
    for dtype, reduction, names in (
        (torch.float32, "mean", []),
        (torch.bfloat16, "mean", []),
        (torch.float16, "mean", ["empty_like"]),
        (torch.float32, "none", ["empty_like"]),
    ):
        given = leaf(pred.to(dtype))
        loss = kernels.wing_loss(given, target, reduction=reduction, impl="triton")
        upstream = torch.full_like(loss, 2.0)
        with Allocations() as made, torch.no_grad():
            loss.grad_fn.apply(upstream)  # what the engine calls; a mode does not see into the engine itself
        assert made.names == names
    with Allocations() as made:  # a target in another order than pred is copied, pred is not
        kernels.wing_loss(permuted, target, weight, impl="triton")
    assert made.names == ["new_empty", "contiguous"]


def test_a_default_device_does_not_change_where_anything_is(device):
    pred, target = face("adaptive_wing", device)
    wanted = kernels.adaptive_wing_loss(pred, target, alpha=2.0625, impl="reference")
    with torch.device("meta"):
        close(kernels.adaptive_wing_loss(pred, target, alpha=2.0625, impl="triton"), wanted)
