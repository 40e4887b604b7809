"""Class activation maps of whole images, over scales and flips, and the seeds they give (arXiv 2211.12455, 3.2)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from runs.errors import InputError

EPSILON = 1e-5  # keeps a map without any activation at 0


def check_scales(scales: Sequence[float]) -> None:
    """Raises InputError where class maps cannot be made at these scales."""
    if not scales or min(scales) <= 0:
        raise InputError(f"cam.scales={list(scales)} must be one positive factor or more")


def check_threshold(threshold: float) -> None:
    """Raises InputError where a background plane is outside of normalised maps."""
    if not 0 <= threshold < 1:
        raise InputError(f"cam.threshold={threshold} must be 0 or more and below 1")


def multi_scale_cam(class_maps: Callable[[Tensor], Tensor], image: Tensor, scales: Sequence[float]) -> Tensor:
    """Sums ReLU maps of an image and of its mirror image over scales.

    M = sum_s resize(ReLU(A(image_s)) + mirror(ReLU(A(mirror(image_s))))). The image is resized
    bicubically, the maps bilinearly (corners not aligned). The network behind ``class_maps`` has to
    be in eval mode.

    Args:
        class_maps: A: normalised images (B, 3, h, w) to class maps (B, C, h', w') before any ReLU.
        image: one normalised image, (3, H, W).
        scales: s, factors of H and W.

    Returns:
        M, (C, H, W), not normalised, of all classes.
    """
    height, width = image.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        view = image[None]
        if size != (height, width):
            view = F.interpolate(view, size=size, mode="bicubic", align_corners=False, antialias=scale < 1)
        maps = class_maps(torch.cat([view, view.flip(-1)])).float().relu()
        both = maps[:1] + maps[1:].flip(-1)
        full = F.interpolate(both, size=(height, width), mode="bilinear", align_corners=False)[0]
        total = full if total is None else total + full
    if total is None:
        raise ValueError("multi_scale_cam needs at least one scale")
    return total


def normalised_cam(cam: Tensor, classes: Tensor) -> Tensor:
    """The maps of some classes, each divided by (its maximum + 1e-5), once, after all scales are summed.

    Args:
        cam: M, (C, H, W).
        classes: places of the classes to keep, (k,) int64: those that the image is labelled with.

    Returns:
        (k, H, W) in 0..1.
    """
    kept = cam[classes]
    return kept / (kept.amax(dim=(1, 2), keepdim=True) + EPSILON)


def seed_labels(cam: Tensor, threshold: float) -> Tensor:
    """Arg-max over the maps with a constant background plane put before them.

    Args:
        cam: normalised maps, (k, H, W).
        threshold: value of the background plane, 0..1; it wins ties.

    Returns:
        (H, W) int64: 0 background, 1 + j where map j is the highest.
    """
    background = torch.full_like(cam[:1], threshold) if len(cam) else cam.new_full((1, *cam.shape[1:]), threshold)
    return torch.cat([background, cam]).argmax(dim=0)


def class_ids(classes: Tensor) -> Tensor:
    """What the labels of `seed_labels` stand for: (k,) class places to (1 + k,) mask values, 0 first.

    Mask values are 0 for background and 1 + c for class c.
    """
    return torch.cat([classes.new_zeros(1), classes + 1])
