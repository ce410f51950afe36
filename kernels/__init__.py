"""Fused losses and the face crop: tensor in, tensor out, each beside its formula in plain torch.

Needs torch alone; the fused kernels need triton.
"""

from kernels.crop import crop_faces
from kernels.losses import (
    adaptive_wing_loss,
    adaptive_wing_loss_and_grad,
    smooth_l1_loss,
    smooth_l1_loss_and_grad,
    soft_wing_loss,
    soft_wing_loss_and_grad,
    wing_loss,
    wing_loss_and_grad,
)
from kernels.modules import AdaptiveWingLoss, SmoothL1Loss, SoftWingLoss, WingLoss
from kernels.ragged import RaggedImages
from kernels.sample import sample_faces
from kernels.sampling import FaceColumns, Sampled, Sampling

__all__ = [
    "AdaptiveWingLoss",
    "FaceColumns",
    "RaggedImages",
    "Sampled",
    "Sampling",
    "SmoothL1Loss",
    "SoftWingLoss",
    "WingLoss",
    "adaptive_wing_loss",
    "adaptive_wing_loss_and_grad",
    "crop_faces",
    "sample_faces",
    "smooth_l1_loss",
    "smooth_l1_loss_and_grad",
    "soft_wing_loss",
    "soft_wing_loss_and_grad",
    "wing_loss",
    "wing_loss_and_grad",
]
