"""Kinetics-400 in the layout of its public archives (Kay et al., arXiv 1705.06950, 2017)."""

import csv
from pathlib import Path

from datamodules.clip_lists import ClipRecord
from runs.errors import InputError, first_few

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


class Kinetics400Reader:
    """``{train,val}/<class>/<id>_<start>_<end>.mp4`` and ``{train,val}.csv``.

    The csv files have a header with ``label, youtube_id, time_start, time_end``; times are whole
    seconds, written with six digits in file names. Class folders may have spaces or underscores.
    Class ids are the alphabetical order of the labels. There is one split; its test list is the
    validation set, as in all published results.

    Args:
        lists_folder: name of the folder of csv files; the root itself is searched too.
    """

    instructions = (
        "get the archives and annotations from https://github.com/cvdfoundation/kinetics-dataset"
        " and set data.root to the folder that holds train/<class>/*.mp4, val/<class>/*.mp4,"
        " train.csv and val.csv (or annotations/train.csv)"
    )

    def __init__(self, lists_folder: str) -> None:
        self.lists_folder = lists_folder

    def prepare(self, root: Path) -> None:
        """The archive is the user's to fetch."""

    def videos_folder(self, root: Path) -> Path:
        return root

    def class_names(self, root: Path) -> list[str]:
        return sorted({row["label"] for part in ("train", "val") for row in self._rows(root, part)})

    def read_split(self, root: Path, split: int) -> tuple[list[ClipRecord], list[ClipRecord]]:
        if split != 1:
            raise InputError(f"Kinetics-400 has one split: set data.split=1, not {split}")
        return self._records(root, "train"), self._records(root, "val")

    def group(self, path: str) -> str | None:
        """The YouTube id: file names end in ``_<start>_<end>``."""
        parts = Path(path).stem.rsplit("_", 2)
        return parts[0] if len(parts) == 3 else None

    def _csv(self, root: Path, part: str) -> Path:
        for folder in (root, root / self.lists_folder):
            if (folder / f"{part}.csv").is_file():
                return folder / f"{part}.csv"
        raise InputError(f"{root} holds no {part}.csv: {self.instructions}")

    def _rows(self, root: Path, part: str) -> list[dict[str, str]]:
        path = self._csv(root, part)
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream)
            missing = [name for name in _COLUMNS if name not in (table.fieldnames or [])]
            if missing:
                raise InputError(f"{path} has no column {first_few(missing)}")
            rows = list(table)
        wrong = [
            f"line {number}"
            for number, row in enumerate(rows, start=2)
            if not row["label"] or not str(row["time_start"]).isdecimal() or not str(row["time_end"]).isdecimal()
        ]
        if wrong:
            raise InputError(f"{path}: {len(wrong)} lines have no label or no whole seconds: {first_few(wrong)}")
        if not rows:
            raise InputError(f"{path} lists no clip")
        return rows

    def _records(self, root: Path, part: str) -> list[ClipRecord]:
        records = []
        folders: dict[str, str] = {}
        for row in self._rows(root, part):
            label = row["label"]
            if label not in folders:
                underscored = label.replace(" ", "_")
                has_underscores = (root / part / underscored).is_dir()
                folders[label] = underscored if has_underscores else label
            file = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
            path = f"{part}/{folders[label]}/{file}.mp4"
            records.append(ClipRecord(path, label, row["youtube_id"]))
        return records
