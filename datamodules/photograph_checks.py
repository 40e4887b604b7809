"""Looks at each photograph of a list before training: what cannot be read, is too small, or has no colour."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from datamodules.photograph_files import DEEP_MODES, of_each
from runs.errors import InputError, first_few

_WITHOUT_COLOUR = ("1", "L", "LA", "I;16", "I;16B")


@dataclass(frozen=True)
class _Look:
    """What a file's pixels are before they become RGB."""

    mode: str
    shorter_side: int


def usable_photographs(files: dict[str, Path], source: str, skip_bad: bool, least_side: int) -> list[str]:
    """The names of the photographs that can be used, in their order; what is left out or converted is said and counted.

    Every file is decoded, a JPEG at an eighth of its size; one of 32 bits a pixel counts as unreadable. Warns once
    each of files that cannot be read (with ``skip_bad``), of images smaller than ``least_side``, of grey and of CMYK
    ones, which become RGB.

    Args:
        files: each photograph's file, by name.
        source: where the list comes from, for the sentences.
        skip_bad: whether files that cannot be read are left out.
        least_side: pixels that the shorter side needs.

    Raises:
        InputError: files cannot be read and ``skip_bad`` is off, or none is left.
    """
    with warnings.catch_warnings():  # not in the threads, which share one list of filters
        warnings.simplefilter("ignore")  # Pillow's own, about odd tags
        looks = of_each(_look, files)
    deep = {name for name, look in looks.items() if look is not None and look.mode in DEEP_MODES}
    broken = [f"{n} (32 bits a pixel)" if n in deep else n for n, look in looks.items() if look is None or n in deep]
    if broken:
        problem = f"{len(broken)} of {len(files)} photographs of {source} cannot be read: {first_few(broken)}"
        if not skip_bad:
            raise InputError(
                f"{problem}; replace them, or leave them out with "
                "data.skip_bad=true (stages.<stage>.data.skip_bad=true where a stage has data of its own)"
            )
        warnings.warn(f"{problem}; they are left out", stacklevel=2)
    readable = {name: look for name, look in looks.items() if look is not None and name not in deep}
    tiny = [name for name, look in readable.items() if look.shorter_side < least_side]
    if tiny:
        warnings.warn(
            f"{len(tiny)} photographs of {source} are smaller than {least_side} pixels and left out: {first_few(tiny)}",
            stacklevel=2,
        )
    usable = [name for name, look in readable.items() if look.shorter_side >= least_side]
    if not usable:
        raise InputError(f"none of the {len(files)} photographs of {source} can be used")
    for kind, modes in (("grey", _WITHOUT_COLOUR), ("CMYK", ("CMYK",))):
        converted = [name for name in usable if readable[name].mode in modes]
        if converted:
            warnings.warn(
                f"{len(converted)} of {len(usable)} photographs of {source} are {kind} and become RGB: "
                f"{first_few(converted)}",
                stacklevel=2,
            )
    return usable


def _look(path: Path) -> _Look | None:
    try:
        with Image.open(path) as picture:
            look = _Look(picture.mode, min(picture.size))
            picture.draft(None, (1, 1))  # of a JPEG, as coarse as its format allows; of others all
            picture.load()
            return look
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError):
        return None
