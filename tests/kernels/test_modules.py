from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

import kernels

PAIRS = [
    (kernels.WingLoss(omega=5.0, epsilon=0.5), kernels.wing_loss, {"omega": 5.0, "epsilon": 0.5}),
    (kernels.SoftWingLoss(omega1=0.1), kernels.soft_wing_loss, {"omega1": 0.1}),
    (kernels.SmoothL1Loss(beta=0.3), kernels.smooth_l1_loss, {"beta": 0.3}),
    (kernels.AdaptiveWingLoss(alpha=1.9), kernels.adaptive_wing_loss, {"alpha": 1.9}),
]


@pytest.mark.parametrize(("module", "function", "parameters"), PAIRS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_module_computes_what_its_function_does(module, function, parameters):
    generator = torch.Generator().manual_seed(3)
    pred, target, weight = (torch.rand(4, 98, 2, generator=generator) for _ in range(3))
    assert torch.equal(module(pred, target, weight), function(pred, target, weight, **parameters))
    assert module(pred, target, weight) != function(pred, target, weight)  # so the parameters did arrive


def test_options_reach_the_function():
    pred, target, weight = torch.ones(2, 3), torch.zeros(2, 3), torch.full((3,), 0.5)
    loss = kernels.WingLoss(reduction="none", weighting="loss")(pred, target, weight)
    torch.testing.assert_close(loss, torch.full((2, 3), 5 * math.log(1.5)))


def test_bad_parameters_are_refused_at_construction():
    with pytest.raises(ValueError, match="omega is -1; wanted a finite number greater than 0"):
        kernels.WingLoss(omega=-1)
    with pytest.raises(ValueError, match="reduction is 'all'"):
        kernels.SmoothL1Loss(reduction="all")
    with pytest.raises(ValueError, match="impl is 'cuda'; wanted one of 'auto', 'triton', 'reference'"):
        kernels.SoftWingLoss(impl="cuda")
    with pytest.raises(TypeError, match="alpha is a str; wanted a number"):
        kernels.AdaptiveWingLoss(alpha="2.1")


@pytest.mark.parametrize(("module", "function", "parameters"), PAIRS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_module_runs_the_kernel_that_it_is_told_to(module, function, parameters, device):
    generator = torch.Generator().manual_seed(4)
    pred, target = (torch.rand(4, 98, 2, generator=generator).to(device) for _ in range(2))
    fused = type(module)(**parameters, impl="triton").to(device)
    assert torch.equal(fused(pred, target), function(pred, target, **parameters, impl="triton"))
    torch.testing.assert_close(fused(pred, target), function(pred, target, **parameters, impl="reference"))


def test_a_module_shows_its_parameters():
    shown = repr(kernels.WingLoss(omega=5.0))
    assert shown == "WingLoss(omega=5.0, epsilon=2.0, reduction='batchmean', weighting='input', impl='auto')"


def test_importing_kernels_imports_nothing_else_of_ours():
    code = "import sys, kernels; print(sorted({m.split('.')[0] for m in sys.modules} & {'bench', 'pose', 'slurm'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
