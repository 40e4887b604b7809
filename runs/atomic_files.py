"""Files that are written whole or not at all: a reader never meets a half-written one."""

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from runs.errors import InputError

TEMPORARY_SUFFIX = ".partial"


def write_atomically(path: str | Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes a file through ``write(stream)``; it appears under ``path`` only when complete.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and replace
    ``path`` in one rename. On any error, an interruption included, the temporary file is removed
    and a previous file at ``path`` stays as it was.

    Raises:
        InputError: the disk or the quota is full, or the folder may not be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    temporary = temporary.with_name(temporary.name + TEMPORARY_SUFFIX)
    with full_disk_in_words(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as stream:
                write(stream)
                flush_to_disk(stream)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)


def flush_to_disk(stream: BinaryIO) -> None:
    """Returns when the stream's bytes have left both Python's and the system's buffers."""
    stream.flush()
    os.fsync(stream.fileno())


def flush_folder(folder: str | Path) -> None:
    """Makes renames inside ``folder`` survive a power cut; file systems that cannot are let be."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def full_disk_in_words(path: str | Path) -> Iterator[None]:
    """Turns the system errors that a user can mend while ``path`` is written into a sentence.

    ``torch.save`` reports a failed write as a RuntimeError that was raised while the system's own
    error was handled: the chain of exceptions is searched.

    Raises:
        InputError: the disk or the quota is full, or the folder may not be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = _system_error_number(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"the disk is full: {path} was not written, what was there before is whole; "
                "free some space, or move the outputs with paths.output_dir=…"
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(
                f"{path} may not be written: give the folder write permission, or move the "
                "outputs with paths.output_dir=…"
            ) from error
        raise


def _system_error_number(error: BaseException) -> int | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None
