"""A folder in the layout that a reader knows: what the datamodules of files on disk begin with."""

from pathlib import Path
from typing import Protocol

import pytorch_lightning as pl

from runs.errors import InputError


class PreparesFolder(Protocol):
    """A reader of one layout."""

    instructions: str

    def prepare(self, root: Path) -> None:
        """Brings files into being that can be made, once on each machine."""
        ...


class FolderDataModule(pl.LightningDataModule):
    """Keeps reader and folders; the reader prepares the root unless the run only predicts.

    Args:
        reader: the on-disk layout.
        root: its folder, or None where none is named.
        predict_root: what to predict on, or None.
    """

    def __init__(self, reader: PreparesFolder, root: str | Path | None, predict_root: str | Path | None) -> None:
        super().__init__()
        self.reader = reader
        self.root = None if root is None else Path(root).expanduser()
        self.predict_root = None if predict_root is None else Path(predict_root).expanduser()

    def prepare_data(self) -> None:
        if self.root is not None and (self.trainer is None or not self.trainer.predicting):
            self.reader.prepare(self.root)

    def existing_root(self) -> Path:
        """The folder of the data.

        Raises:
            InputError: none is named, or it is none.
        """
        return existing_folder(self.root, "data.root", self.reader.instructions)


def existing_folder(folder: Path | None, key: str, remedy: str) -> Path:
    """The folder that ``key`` names.

    Raises:
        InputError: none is named, or it is none; says the remedy.
    """
    if folder is None:
        raise InputError(f"{key} is not set: {remedy}")
    if not folder.is_dir():
        raise InputError(f"{key}={folder} is no folder: {remedy}")
    return folder
