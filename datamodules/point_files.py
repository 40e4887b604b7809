"""Readers of point sets: the official files of COIL-20, PenDigits and USPS, and a user's own table."""

import bz2
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.csv_rows import read_csv_rows
from datamodules.table_files import classes_of, column, finite_numbers
from runs.errors import InputError, first_few

PENDIGITS = "UCI Machine Learning Repository, Pen-Based Recognition of Handwritten Digits"
COIL20 = "Columbia University COIL-20, processed"


@dataclass(frozen=True)
class Points:
    """n points.

    Attributes:
        features: (n, d) float64, raw.
        labels: (n,) int64 from 0, or None where nobody knows them.
        class_names: position is the label; empty without labels.
        files: for the messages: where the points come from.
    """

    features: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    class_names: list[str]
    files: str


class PenDigitsReader:
    """UCI's `pendigits.tra`: 16 whole numbers 0..100 and the digit, comma separated, 7,494 lines.

    The paper uses this training part alone; `pendigits.tes` is not read.
    """

    def read(self, root: str | None) -> Points:
        """Reads `<root>/pendigits.tra`."""
        path = _folder(root, f"pendigits.tra, from {PENDIGITS}") / "pendigits.tra"
        _require(path, f"the training part, from {PENDIGITS}")
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if not line.strip():
                continue
            values = line.split(",")
            if len(values) != 17:
                raise InputError(f"{path}, line {number}: {len(values)} columns instead of 17 (16 numbers, the digit)")
            try:
                row = [float(value) for value in values]
            except ValueError:
                raise InputError(f"{path}, line {number}: '{line.strip()}' is not a row of 17 numbers") from None
            if row[16] not in range(10):
                raise InputError(f"{path}, line {number}: label {values[16].strip()} is not a digit 0 to 9")
            rows.append(row)
        table = np.array(rows, dtype=np.float64).reshape(-1, 17)
        return Points(table[:, :16], table[:, 16].astype(np.int64), [str(d) for d in range(10)], str(path))


class USPSReader:
    """USPS, 9,298 images of 16 x 16: `USPS.mat`, or the LIBSVM pair `usps`, `usps.t` (.bz2 too), or `usps.h5`."""

    def read(self, root: str | None) -> Points:
        """Reads the first of the three that is there; training and test part are joined."""
        folder = _folder(root, "USPS")
        names = [str(digit) for digit in range(10)]
        if (path := folder / "USPS.mat").is_file():
            features, labels = _fea_gnd(path, columns=256)
        elif (path := folder / "usps.h5").is_file():
            features, labels = _usps_h5(path)
        else:
            pair = [_plain_or_bz2(folder / name) for name in ("usps", "usps.t")]
            if None in pair:
                raise InputError(
                    f"no USPS in {folder}: it must hold USPS.mat (fea 9298 x 256, gnd 1..10), or usps.h5, or LIBSVM's "
                    "usps and usps.t (.bz2 or unpacked); for usps_all.mat take data=usps_all"
                )
            parts = [_libsvm(part, columns=256) for part in pair]
            features, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
            path = folder / "usps, usps.t"
        return Points(features, labels, names, str(path))


class USPSAllReader:
    """The other USPS: `usps_all.mat`, 1,100 images a digit, 11,000 in all; not the set of the literature's tables."""

    def read(self, root: str | None) -> Points:
        """Reads `<root>/usps_all.mat`: `data`, pixel x sample x class; class 9 is the digit 0."""
        path = _folder(root, "USPS (11,000 images)") / "usps_all.mat"
        _require(path, "the USPS file with 1,100 images a digit (data, 256 x 1100 x 10)")
        data = _mat(path, "data")["data"]
        if data.ndim != 3 or data.shape[0] != 256 or data.shape[2] != 10:
            raise InputError(f"{path}: data has shape {data.shape} instead of (256, images, 10)")
        images = data.shape[1]
        features = data.transpose(2, 1, 0).reshape(10 * images, 256).astype(np.float64)
        labels = np.repeat((np.arange(10) + 1) % 10, images)
        return Points(features, labels, [str(digit) for digit in range(10)], str(path))


class COIL20Reader:
    """COIL-20, 1,440 pictures of 20 objects as 32 x 32 pixels: `COIL20.mat`, or the processed PNG files.

    The PNG files (`coil-20-proc/obj<k>__<a>.png`, 128 x 128) are reduced by area average.
    """

    def read(self, root: str | None) -> Points:
        """Reads `<root>/COIL20.mat`, or `<root>/coil-20-proc` (or root, if it is that folder)."""
        folder = _folder(root, f"COIL20.mat, or coil-20-proc of {COIL20}")
        names = [f"obj{number}" for number in range(1, 21)]
        if (path := folder / "COIL20.mat").is_file():
            return Points(*_fea_gnd(path, columns=1024), names, str(path))
        pictures = folder / "coil-20-proc" if (folder / "coil-20-proc").is_dir() else folder
        found = [(re.fullmatch(r"obj(\d+)__(\d+)\.png", path.name), path) for path in pictures.glob("obj*__*.png")]
        found = sorted((int(match[1]), int(match[2]), path) for match, path in found if match)
        if not found:
            raise InputError(
                f"no COIL-20 in {folder}: it must hold COIL20.mat (fea 1440 x 1024, gnd 1..20) or the folder "
                f"coil-20-proc with obj<k>__<a>.png, from {COIL20}"
            )
        wrong = [path.name for number, _, path in found if not 1 <= number <= 20]
        if wrong:
            raise InputError(f"{pictures}: {first_few(wrong)} name objects beyond 1..20")
        features = np.stack([self._pixels(path) for *_, path in found])
        return Points(features, np.array([number - 1 for number, *_ in found]), names, str(pictures))

    @staticmethod
    def _pixels(path: Path) -> NDArray[np.float64]:
        try:
            with Image.open(path) as image:
                grey = np.asarray(image.convert("L"), dtype=np.float64)
        except OSError as error:
            raise InputError(f"{path} cannot be read as a picture: unpack coil-20-proc again") from error
        height, width = grey.shape
        if height != width or height % 32:
            raise InputError(f"{path} has {width} x {height} pixels: COIL-20's processed pictures have 128 x 128")
        return grey.reshape(32, height // 32, 32, width // 32).mean(axis=(1, 3)).ravel()


class SklearnDigitsReader:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn."""

    def read(self, root: str | None) -> Points:
        """Needs no file; root is not looked at."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        names = [str(digit) for digit in range(10)]
        return Points(digits.data.astype(np.float64), digits.target.astype(np.int64), names, "scikit-learn's digits")


class TableReader:
    """A table of one's own: a CSV file with a line of column names, or a .npy array (n, d).

    Args:
        label: name of the CSV column with the true classes, or None if there is none. All other
            columns are numbers.
    """

    def __init__(self, label: str | None) -> None:
        self.label = label

    def read(self, root: str | None) -> Points:
        """Reads the file `root`."""
        path = Path(root or "")
        if not path.is_file():
            raise InputError(f"data.root={root} is no file: give a table, a .csv with column names or a .npy array")
        if path.suffix == ".npy":
            return self._array(path)
        if path.suffix != ".csv":
            raise InputError(f"data.root={path} is neither .csv nor .npy: save the table as one of them")
        return self._csv(path)

    def _array(self, path: Path) -> Points:
        if self.label is not None:
            raise InputError(
                f"data.reader.label={self.label}: {path.name} has no column names, so no labels: leave it out"
            )
        try:
            table = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise InputError(f"{path} is no array of numbers: save one with numpy.save") from error
        if table.ndim != 2 or table.dtype.kind not in "fiub":
            raise InputError(f"{path} holds {table.dtype} of shape {table.shape} instead of numbers (points, columns)")
        return Points(table.astype(np.float64), None, [], str(path))

    def _csv(self, path: Path) -> Points:
        rows = read_csv_rows(path)
        names = [name for name in rows.columns if name != self.label]
        labels, class_names = None, []
        if self.label is not None:
            rows.place(self.label, "data.reader.label")
            labels, class_names = classes_of(column(rows, self.label), f"{path}, column {self.label}")
        try:
            features = [finite_numbers(rows, name) for name in names]
        except InputError as error:
            raise InputError(f"{error} (a column of classes is named by data.reader.label)") from error
        if not features:
            raise InputError(f"{path} has no column of numbers beside {self.label}")
        return Points(np.stack(features, axis=1), labels, class_names, str(path))


def _folder(root: str | None, what: str) -> Path:
    if root is None or not Path(root).is_dir():
        raise InputError(f"data.root={root} is no folder: give the one that holds {what}")
    return Path(root)


def _require(path: Path, what: str) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing: put {what} there")


def _mat(path: Path, *names: str) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except Exception as error:  # scipy raises whatever the bytes lead it to
        raise InputError(f"{path} cannot be read as a MATLAB 5 file: get it again") from error
    missing = [name for name in names if name not in content]
    if missing:
        held = [name for name in content if not name.startswith("__")]
        raise InputError(f"{path} has no {first_few(missing)}: it holds {first_few(held) or 'nothing'}")
    return content


def _fea_gnd(path: Path, columns: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """`fea` (n, columns), and `gnd` from 1, as labels from 0."""
    content = _mat(path, "fea", "gnd")
    features, classes = np.asarray(content["fea"]), np.asarray(content["gnd"], dtype=np.float64).ravel()
    if features.ndim != 2 or features.shape[1] != columns or len(features) != len(classes):
        raise InputError(
            f"{path}: fea has shape {features.shape} and gnd {len(classes)} values instead of (n, {columns}) and n"
        )
    wrong = np.flatnonzero((classes != np.round(classes)) | (classes < 1))
    if len(wrong):
        raise InputError(f"{path}: gnd of row {wrong[0] + 1} is {classes[wrong[0]]:g} instead of a whole number from 1")
    return features.astype(np.float64), classes.astype(np.int64) - 1


def _usps_h5(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Groups train and test, each with `data` (n, 256) and `target` (n,)."""
    import h5py

    try:
        with h5py.File(path) as file:
            parts = [(file[part]["data"][()], file[part]["target"][()]) for part in ("train", "test")]
    except (OSError, KeyError) as error:
        raise InputError(f"{path} is no usps.h5: it must have train and test, each with data and target") from error
    features, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    features = features.reshape(len(features), -1)
    if features.shape[1] != 256:
        raise InputError(f"{path}: an image has {features.shape[1]} values instead of 256")
    return features.astype(np.float64), labels.astype(np.int64)


def _plain_or_bz2(path: Path) -> Path | None:
    packed = path.with_name(f"{path.name}.bz2")
    return path if path.is_file() else packed if packed.is_file() else None


def _libsvm(path: Path, columns: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """LIBSVM text, `<class from 1> <column from 1>:<value> …`, as a dense table and labels from 0."""
    opened = bz2.open if path.suffix == ".bz2" else open
    rows, labels = [], []
    try:
        with opened(path, "rt", encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be unpacked: get it again from the LIBSVM collection") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        label, *pairs = line.split()
        row = np.zeros(columns)
        try:
            for pair in pairs:
                column, value = pair.split(":")
                if not 1 <= int(column) <= columns:
                    raise InputError(f"{path}, line {number}: column {column} is not one of 1..{columns}")
                row[int(column) - 1] = float(value)
            if float(label) not in range(1, 11):
                raise InputError(f"{path}, line {number}: label {label} is not a whole number 1..10")
        except InputError:
            raise
        except ValueError:
            raise InputError(
                f"{path}, line {number}: '{line[:60]}' is not LIBSVM's <class> <column>:<value> …"
            ) from None
        rows.append(row)
        labels.append(int(float(label)) - 1)
    return np.array(rows).reshape(-1, columns), np.array(labels, dtype=np.int64)
