"""Pascal VOC's classes, colour map and palette masks: 0 background, 1..20 classes, 255 void."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from runs.errors import InputError, first_few

VOID = 255
CLASS_NAMES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


def _palette() -> NDArray[np.uint8]:
    """The VOC colour map: bits of the class id, three at a time, become the high bits of R, G and B."""
    ids = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= (((ids >> (3 * place + channel)) & 1) << (7 - place)).astype(np.uint8)
    return colours


PALETTE = _palette()  # (256, 3) RGB of each mask value


def palette_image(mask: NDArray[np.integer]) -> Image.Image:
    """A mask (H, W) of values 0..255 as an 8-bit palette picture in VOC's colours."""
    picture = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    picture.putpalette(PALETTE.flatten().tolist())
    return picture


def read_mask(path: str | Path, num_classes: int) -> NDArray[np.uint8]:
    """Reads a mask PNG: palette indices or grey values as they are, RGB by VOC's colour map with a warning.

    Args:
        path: the file.
        num_classes: values allowed besides 255, background included.

    Returns:
        (H, W) uint8.

    Raises:
        InputError: the file is missing or unreadable, a colour is none of the map, or a value is no class.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise InputError(f"the mask {path} cannot be read: expected a PNG with VOC's palette") from error
    if picture.mode in ("P", "L"):
        mask = np.array(picture)
    elif picture.mode in ("RGB", "RGBA"):
        warnings.warn(f"{path} is an RGB picture, not a palette PNG: decoded by VOC's colours", stacklevel=2)
        mask = _from_colours(np.array(picture.convert("RGB")), path)
    else:
        raise InputError(f"the mask {path} has the pixel format {picture.mode}: expected a palette PNG")
    values = np.unique(mask)
    foreign = values[(values >= num_classes) & (values != VOID)]
    if len(foreign):
        raise InputError(
            f"the mask {path} holds the values {first_few(foreign.tolist())}: expected 0 to {num_classes - 1}, or 255"
        )
    return mask


def _from_colours(pixels: NDArray[np.uint8], path: str | Path) -> NDArray[np.uint8]:
    codes = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    known = PALETTE.astype(np.int64) @ np.array([65536, 256, 1])
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known[order], codes).clip(max=255)
    value = order[place]
    wrong = known[value] != codes
    if wrong.any():
        colours = np.unique(pixels[wrong], axis=0)
        raise InputError(
            f"the mask {path} holds colours that VOC's map does not have: "
            f"{first_few([tuple(colour.tolist()) for colour in colours])}"
        )
    return value.astype(np.uint8)


def overlay(image: NDArray[np.uint8], mask: NDArray[np.integer], opacity: float = 0.6) -> NDArray[np.uint8]:
    """An image (H, W, 3) with the colours of a mask (H, W) laid over it; background stays as it is."""
    colours = PALETTE[mask]
    mixed = image * (1.0 - opacity) + colours * opacity
    return np.where((mask == 0)[..., None], image, np.rint(mixed)).astype(np.uint8)


def overlay_row(image: Tensor, name: str, masks: Mapping[str, Tensor]) -> list[tuple[NDArray[np.uint8], str]]:
    """A row of `components.figures.image_rows`: an image under its name, then with each mask laid over it.

    Args:
        image: (3, H, W) uint8, of any device.
        name: caption of the image.
        masks: (H, W) int64 or uint8 of each caption.
    """
    pixels = image.permute(1, 2, 0).cpu().numpy()
    return [(pixels, name), *((overlay(pixels, mask.cpu().numpy()), caption) for caption, mask in masks.items())]
