"""UCF101 in its official layout (Soomro, Zamir, Shah, CRCV-TR-12-01, 2012)."""

import re
from pathlib import Path

from datamodules.clip_lists import ClipRecord, check_classes, read_lines
from runs.errors import InputError, first_few

_GROUP = re.compile(r"_(g\d+)_c\d+$")


class UCF101Reader:
    """``UCF-101/<Class>/v_<Class>_gNN_cNN.avi`` and ``<lists>/{classInd,trainlist0k,testlist0k}``.

    The class of a clip is its folder: file names differ from it in case for HandstandPushups.

    Args:
        lists_folder: name of the folder of list files beside the videos.
    """

    instructions = (
        "get UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip from"
        " https://www.crcv.ucf.edu/data/UCF101.php and set data.root to the folder that holds"
        " UCF-101/<Class>/*.avi and ucfTrainTestlist/*.txt"
    )

    def __init__(self, lists_folder: str) -> None:
        self.lists_folder = lists_folder

    def _base(self, root: Path) -> Path:
        """The folder that holds both parts, also where the user named the video folder itself."""
        for base in (root, root.parent):
            if (base / "UCF-101").is_dir() and (base / self.lists_folder).is_dir():
                return base
        raise InputError(f"{root} holds no UCF-101/ with {self.lists_folder}/ beside it: {self.instructions}")

    def prepare(self, root: Path) -> None:
        """The archive is the user's to fetch."""

    def videos_folder(self, root: Path) -> Path:
        return self._base(root) / "UCF-101"

    def class_names(self, root: Path) -> list[str]:
        path = self._base(root) / self.lists_folder / "classInd.txt"
        names = []
        for number, line in read_lines(path):
            fields = line.split()
            if len(fields) != 2 or fields[0] != str(len(names) + 1):
                raise InputError(f"{path}: line {number} '{line}' should be '{len(names) + 1} <Class>'")
            names.append(fields[1])
        return names

    def read_split(self, root: Path, split: int) -> tuple[list[ClipRecord], list[ClipRecord]]:
        names = self.class_names(root)
        lists = self._base(root) / self.lists_folder
        train = self._read(lists / f"trainlist{split:02d}.txt", names, with_id=True)
        return train, self._read(lists / f"testlist{split:02d}.txt", names, with_id=False)

    def group(self, path: str) -> str | None:
        match = _GROUP.search(Path(path).stem)
        return match.group(1) if match else None

    def _read(self, path: Path, names: list[str], with_id: bool) -> list[ClipRecord]:
        """Lines ``<Class>/<file> <1-based id>``; test lists have no id."""
        ids = {name: str(place) for place, name in enumerate(names, start=1)}
        records, wrong = [], []
        for number, line in read_lines(path):
            clip, _, label = line.partition(" ")
            folder, slash, _ = clip.partition("/")
            record = ClipRecord(clip, folder, self.group(clip))
            id_fits = not with_id or label.strip() == ids.get(folder, label.strip())
            if not slash or not id_fits:
                wrong.append(f"line {number} '{line}'")
            records.append(record)
        if wrong:
            form = "<Class>/<file> <1-based id of the class>" if with_id else "<Class>/<file>"
            raise InputError(f"{path}: {len(wrong)} lines are not '{form}': {first_few(wrong)}")
        check_classes(records, names, path)
        return records
