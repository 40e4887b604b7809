"""What the datamodules of files on disk share."""

from pathlib import Path

import pytest

from datamodules.folder import FolderDataModule
from runs.errors import InputError


class CountingReader:
    instructions = "it must hold a.txt"

    def __init__(self) -> None:
        self.prepared: list[Path] = []

    def prepare(self, root: Path) -> None:
        self.prepared.append(root)


class PredictingTrainer:
    predicting = True


def test_the_reader_prepares_the_root_unless_the_run_only_predicts(tmp_path: Path) -> None:
    reader = CountingReader()
    data = FolderDataModule(reader, str(tmp_path), None)
    data.prepare_data()
    assert reader.prepared == [tmp_path] and data.existing_root() == tmp_path
    data.trainer = PredictingTrainer()
    data.prepare_data()
    FolderDataModule(reader, None, tmp_path).prepare_data()  # nothing to prepare
    assert reader.prepared == [tmp_path]


@pytest.mark.parametrize(
    ("root", "answer"),
    [(None, "data.root is not set: it must hold a.txt"), ("gone", "data.root=gone is no folder: it must hold a.txt")],
)
def test_a_root_that_is_none_is_answered_by_what_it_must_hold(root: str | None, answer: str) -> None:
    with pytest.raises(InputError, match=answer):
        FolderDataModule(CountingReader(), root, None).existing_root()


def test_a_tilde_is_the_home_folder() -> None:
    data = FolderDataModule(CountingReader(), "~/data", "~/new")
    assert data.root == Path.home() / "data" and data.predict_root == Path.home() / "new"
