"""Fused losses and the face crop: tensor in, tensor out, each with its formula in plain torch. Needs torch alone."""

from kernels.crop import RaggedImages, crop_faces
from kernels.losses import adaptive_wing_loss, smooth_l1_loss, soft_wing_loss, wing_loss, wing_loss_and_grad
from kernels.modules import AdaptiveWingLoss, SmoothL1Loss, SoftWingLoss, WingLoss

__all__ = [
    "AdaptiveWingLoss",
    "RaggedImages",
    "SmoothL1Loss",
    "SoftWingLoss",
    "WingLoss",
    "adaptive_wing_loss",
    "crop_faces",
    "smooth_l1_loss",
    "soft_wing_loss",
    "wing_loss",
    "wing_loss_and_grad",
]
