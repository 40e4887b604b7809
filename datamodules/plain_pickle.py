"""Pickles of plain numbers, read without running what a pickle may ask for."""

import io
import pickle
from pathlib import Path
from typing import Any

from runs.errors import InputError


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, tuples, ints and bools; a pickle that names any class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_plain_pickle(path: Path) -> Any:
    """Reads a pickle of lists, tuples, ints and bools, and nothing else.

    Raises:
        InputError: it is missing, damaged, or holds or asks for anything else.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        content = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:
        raise InputError(f"{path} is no list of image numbers ({error}): it was not opened any further") from error
    if not _is_plain(content):
        raise InputError(f"{path} holds more than lists of numbers: it was not used")
    return content


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return type(value) in (int, bool)
