"""Lists of labelled clips: their records, the SSL list format, and drawing the labelled share."""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from runs.errors import InputError, did_you_mean, first_few


@dataclass(frozen=True)
class ClipRecord:
    """One listed clip.

    Attributes:
        path: path below the reader's video folder, with forward slashes.
        class_name: its class.
        group: clips of one class and group were cut from one recording; None where unknown.
    """

    path: str
    class_name: str
    group: str | None = None


@runtime_checkable
class ClipReader(Protocol):
    """An official on-disk layout of labelled clips.

    Each method takes the folder that the user named (after ``prepare`` it must exist) and raises
    InputError with the offenders where the layout is not as expected.
    """

    instructions: str
    """Where to get the archive and what the unpacked folder looks like; a phrase for errors."""

    def prepare(self, root: Path) -> None:
        """Puts the files there where that can be done without the user; else does nothing."""
        ...

    def videos_folder(self, root: Path) -> Path:
        """The folder that record paths start from."""
        ...

    def class_names(self, root: Path) -> list[str]:
        """All classes of the dataset in the order of the official ids."""
        ...

    def read_split(self, root: Path, split: int) -> tuple[list[ClipRecord], list[ClipRecord]]:
        """Training and test records of official split ``split``."""
        ...

    def group(self, path: str) -> str | None:
        """The recording that a clip belongs to, from its file name."""
        ...


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Non-empty lines of a text file with their 1-based numbers.

    Raises:
        InputError: the file is missing, not text, or empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"the list file {path} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list file {path} cannot be read as text") from error
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"the list file {path} is empty")
    return lines


def check_classes(records: list[ClipRecord], known: list[str], source: Path) -> None:
    """Raises InputError where a record's class is not one of the dataset's."""
    names = set(known)
    strangers = [record for record in records if record.class_name not in names]
    if strangers:
        unknown = sorted({record.class_name for record in strangers})
        raise InputError(
            f"{source} lists {len(strangers)} clips of {len(unknown)} unknown classes"
            f" ({first_few(unknown)}), the first being {strangers[0].path}:"
            f" {did_you_mean(unknown[0], known)}"
        )


def read_ssl_list(path: Path, class_names: list[str], reader: ClipReader) -> list[ClipRecord]:
    """Reads one list of ``<relative path> <first frame> <number of frames> <0-based class id>``.

    Frame numbers are not used: the decoded file knows better. Where the clip's folder bears a
    class name, it must be that of the id, which finds lists with 1-based ids.

    Raises:
        InputError: a malformed line, an id out of range, or an id that contradicts the folder.
    """
    records, malformed, contradicting = [], [], []
    known = set(class_names)
    for number, line in read_lines(path):
        fields = line.rsplit(maxsplit=3)
        if len(fields) != 4 or not all(field.isdecimal() for field in fields[1:]):
            malformed.append(f"line {number} '{line}'")
            continue
        relative, label = fields[0].replace("\\", "/"), int(fields[3])
        if label >= len(class_names):
            malformed.append(f"line {number} '{line}' (ids end at {len(class_names) - 1})")
            continue
        folder = relative.split("/")[-2] if "/" in relative else ""
        if folder in known and folder != class_names[label]:
            contradicting.append(f"line {number} '{line}' (id {label} is {class_names[label]})")
            continue
        records.append(ClipRecord(relative, class_names[label], reader.group(relative)))
    if malformed:
        raise InputError(
            f"{path}: {len(malformed)} lines are not '<path> <first frame> <frames> <0-based class"
            f" id>': {first_few(malformed)}"
        )
    if contradicting:
        raise InputError(
            f"{path}: in {len(contradicting)} lines the folder is another class than the 0-based"
            f" id: {first_few(contradicting)}"
        )
    return records


def draw_labeled(
    train: list[ClipRecord],
    per_class: int | None,
    fraction: float | None,
    seed: int,
) -> list[ClipRecord]:
    """Draws the labelled clips, class by class.

    A class's draw depends on ``seed``, its name and its own clips alone. ``fraction`` takes the
    nearest whole number of each class's clips, at least one (1 % of UCF101 is one clip a class).

    Args:
        train: all training records.
        per_class: labelled clips of each class; or
        fraction: labelled share of each class, in (0, 1].
        seed: seed of the draw, >= 0.

    Raises:
        InputError: not exactly one of the two is given, it is out of range, or a class has fewer
            clips than ``per_class``.
    """
    if (per_class is None) == (fraction is None):
        raise InputError(
            "data.lists=official needs exactly one of data.labeled_per_class and"
            f" data.labeled_fraction, found {per_class} and {fraction}: set the other one to null"
        )
    if fraction is not None and not 0 < fraction <= 1:
        raise InputError(f"data.labeled_fraction={fraction} must be above 0 and at most 1")
    if per_class is not None and per_class < 1:
        raise InputError(f"data.labeled_per_class={per_class} must be at least 1")
    by_class: dict[str, list[ClipRecord]] = {}
    for record in sorted(train, key=lambda record: record.path):
        by_class.setdefault(record.class_name, []).append(record)
    if per_class is not None:
        small = [f"{name} ({len(c)})" for name, c in by_class.items() if len(c) < per_class]
        if small:
            raise InputError(
                f"data.labeled_per_class={per_class} is more than {len(small)} classes have"
                f" training clips: {first_few(small)}"
            )
    labeled = []
    for name, clips in by_class.items():
        count = per_class if fraction is None else max(1, math.floor(fraction * len(clips) + 0.5))
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        chosen = np.sort(generator.permutation(len(clips))[:count])
        labeled.extend(clips[place] for place in chosen)
    return labeled
