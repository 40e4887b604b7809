"""Between RGB pixels and CIE Lab (D65), on the device of the pixels and in float32 whatever the precision of the run.

Lightness L is scaled to L / 50 - 1 and colour to (a, b) / 128, so that both lie in -1..1.
"""

import torch
from kornia.color import lab_to_rgb, rgb_to_lab
from torch import Tensor

AB_UNIT = 128.0  # of Lab: what a colour of 1 means


def split(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 RGB (B, 3, H, W) to lightness (B, 1, H, W) and colour (B, 2, H, W)."""
    # Autocast would do the matrix products in half precision: errors of several units of Lab.
    with torch.autocast(pixels.device.type, enabled=False):
        lab = rgb_to_lab(pixels.float() / 255)
    return lab[:, :1] / 50 - 1, lab[:, 1:] / AB_UNIT


def lightness(pixels: Tensor) -> Tensor:
    """uint8 RGB (B, 3, H, W) to lightness (B, 1, H, W) alone."""
    return split(pixels)[0]


def join(lightness: Tensor, colour: Tensor) -> Tensor:
    """Lightness (B, 1, H, W) and colour (B, 2, H, W) to RGB (B, 3, H, W) of 0..1; what lies outside RGB is clipped."""
    with torch.autocast(lightness.device.type, enabled=False):
        return lab_to_rgb(torch.cat([(lightness.float() + 1) * 50, colour.float() * AB_UNIT], dim=1))
