"""HMDB51 in its official layout (Kuehne, Jhuang, Garrote, Poggio, Serre, ICCV 2011)."""

from pathlib import Path

from datamodules.clip_lists import ClipRecord, read_lines
from runs.errors import InputError, first_few


class HMDB51Reader:
    """``<class>/<name>.avi`` and ``<lists>/<class>_test_split<k>.txt``.

    Each line of a split file is ``<name>.avi <0|1|2>``: 0 unused, 1 training (70 clips a class),
    2 test (30). Class ids are the alphabetical order of the names.

    Args:
        lists_folder: name of the folder of split files, inside the root or beside it.
    """

    instructions = (
        "get hmdb51_org.rar and test_train_splits.rar from"
        " https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/, unpack"
        " the 51 archives inside the first, and set data.root to the folder that holds"
        " <class>/*.avi and testTrainMulti_7030_splits/"
    )

    def __init__(self, lists_folder: str) -> None:
        self.lists_folder = lists_folder

    def _lists(self, root: Path) -> Path:
        for base in (root, root.parent):
            if (base / self.lists_folder).is_dir():
                return base / self.lists_folder
        raise InputError(f"{root} holds no {self.lists_folder}/: {self.instructions}")

    def prepare(self, root: Path) -> None:
        """The archive is the user's to fetch."""

    def videos_folder(self, root: Path) -> Path:
        inner = root / "hmdb51_org"
        return inner if inner.is_dir() else root

    def class_names(self, root: Path) -> list[str]:
        return self._class_names(root, split=None)

    def read_split(self, root: Path, split: int) -> tuple[list[ClipRecord], list[ClipRecord]]:
        train, test, wrong = [], [], []
        for name in self._class_names(root, split):
            path = self._lists(root) / f"{name}_test_split{split}.txt"
            for number, line in read_lines(path):
                clip, _, use = line.rpartition(" ")
                if not clip or use not in {"0", "1", "2"}:
                    wrong.append(f"{path.name} line {number} '{line}'")
                elif use != "0":
                    record = ClipRecord(f"{name}/{clip.strip()}", name, self.group(clip))
                    (train if use == "1" else test).append(record)
        if wrong:
            raise InputError(f"{self._lists(root)}: {len(wrong)} lines are not '<file> 0|1|2': {first_few(wrong)}")
        return train, test

    def group(self, path: str) -> str | None:
        """File names of HMDB51 do not name the recording."""
        return None

    def _class_names(self, root: Path, split: int | None) -> list[str]:
        number = "*" if split is None else str(split)
        ending = "_test_split"
        files = self._lists(root).glob(f"*{ending}{number}.txt")
        names = sorted({path.stem[: path.stem.rindex(ending)] for path in files})
        if not names:
            raise InputError(f"{self._lists(root)} holds no <class>_test_split{split or 'N'}.txt: {self.instructions}")
        return names
