"""Keeps what each image and setting gave, on disk, the moment it is there: a killed run loses the one at work."""

import csv
import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.callbacks import RichProgressBar
from scipy.io import savemat
from torch import Tensor

from runs.atomic_files import write_atomically

LABELS_MAX = 2**16  # of a 16-bit picture
_log = logging.getLogger(__name__)  # to run.log
_terminal = logging.getLogger("reprise")  # to the terminal too


@dataclass(frozen=True)
class KeptResult:
    """A label map (h, w) int64, what its inner steps measured, (t,) each, and the seconds that it took."""

    labels: Tensor
    curves: dict[str, Tensor]
    seconds: float


class MadeResult(Protocol):
    """What a module hands over: the same fields."""

    labels: Tensor
    curves: dict[str, Tensor]
    seconds: float


@runtime_checkable
class KeepsResults(Protocol):
    """A module that segments image by image."""

    def use_results(self, results: "PerImageResults") -> None:
        """Called before the first batch: ask ``results.find`` before work, give to ``results.keep`` after it."""
        ...

    def score_table(self) -> list[dict[str, Any]]:
        """A row for each image and setting of the last test."""
        ...


@runtime_checkable
class NamesToPredict(Protocol):
    """A datamodule that knows all photographs of a prediction."""

    def names_to_predict(self) -> list[str]:
        """Their names, on every process the same."""
        ...


class PerImageResults(pl.Callback):
    """Writes `<folder>/<image>/<setting>.png`, a 16-bit label map, and `.json` with all else about it.

    Each file is written whole or not at all, the picture first; the JSON holds the picture's digest and a
    fingerprint of everything that decides the label map. A result counts if both agree. So at whatever moment a
    run ends, all finished results but the one at work are there: for the run that goes on (with or without a
    checkpoint, on any number of processes), for its test, and for `eval.py` on a checkpoint of the run, which
    looks into that run's folder too. A result of another fingerprint is made again.

    A prediction's pictures of 16 bits are written as MATLAB files as well: `seg_lab`, labels from 1, the form in
    which superpixels of this family of methods are handed on. They are `<name>.mat` without the picture's ending;
    with it (`a.jpg.mat`) where pictures differ in nothing else.

    Args:
        folder: of the results, ``<stage_dir>/results``.
        table: CSV file with a row for each image and setting, written whole at the end of a test.
        predictions: folder of the MATLAB files.
    """

    def __init__(self, folder: str, table: str, predictions: str) -> None:
        self.folder, self.table, self.predictions = Path(folder), Path(table), Path(predictions)
        self._trainer: pl.Trainer | None = None
        self._bar: tuple[Any, Any] | None = None  # rich's progress display, and the task in it
        self._at_work = ""
        self._shared: set[PurePosixPath] = set()  # names without ending that several pictures have

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._trainer, self._bar = trainer, None
        if isinstance(module, KeepsResults):
            module.use_results(self)

    # ---- what the module calls -------------------------------------------------------------------

    def find(self, image: str, setting: str, fingerprint: str) -> KeptResult | None:
        """The result of an image and a setting, if it is whole and was made from the very same things."""
        self._at_work = f"{image} {setting}"
        for source in self._sources():
            picture, about = _files(source, image, setting)
            try:
                written = json.loads(about.read_text())
                content = picture.read_bytes()
                if _digest(content) != written["picture"]:
                    raise ValueError("the picture is not the one that it was written with")
                made_from = written["fingerprint"]
                curves = {name: torch.tensor(values) for name, values in written["curves"].items()}
                found = KeptResult(_labels(content), curves, float(written["seconds"]))
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                _terminal.info(f"{about} or its picture cannot be used ({error}): made again")
                continue
            if made_from != fingerprint:
                if source == self.folder.absolute():
                    _terminal.info(
                        f"{about} was made from another image, other superpixels or other settings: made again"
                    )
                continue
            return found
        return None

    def keep(self, image: str, setting: str, fingerprint: str, made: MadeResult, about: Mapping[str, Any]) -> None:
        """Writes a result.

        Args:
            image: its name, a relative path.
            setting: its name.
            fingerprint: of everything that decided the label map.
            made: the label map, values 0..65535, and the curves.
            about: plain values for the reader of the JSON file.

        Raises:
            InputError: the disk is full, or the folder may not be written.
            ValueError: a label does not fit into 16 bits, or a number is not finite.
        """
        picture, file = _files(self.folder, image, setting)
        content = _png(made.labels)
        written = {
            **about,
            "seconds": round(made.seconds, 3),
            "curves": {name: values.tolist() for name, values in made.curves.items()},
            "fingerprint": fingerprint,
            "picture": _digest(content),
        }
        text = json.dumps(written, indent=1, allow_nan=False) + "\n"
        write_atomically(picture, lambda stream: stream.write(content))
        write_atomically(file, lambda stream: stream.write(text.encode()))
        _log.info("%s %s: %s labels, %.1f s", image, setting, about.get("labels", "?"), made.seconds)
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, visible=False)

    def inner_step(self, done: int, total: int, note: str) -> None:
        """Shows how far the result at work is, below the bar of the trainer."""
        display = self._trainer.progress_bar_callback if self._trainer is not None else None
        if not isinstance(display, RichProgressBar) or not display.is_enabled or display.progress is None:
            return
        if self._bar is None or self._bar[0] is not display.progress:
            self._bar = display.progress, display.progress.add_task(self._at_work, total=total)
        progress, task = self._bar
        progress.update(
            task, completed=done, total=total, description=f"{self._at_work}: {note}", visible=True, refresh=False
        )
        display.refresh()

    def _sources(self) -> list[Path]:
        """Where results may be: the own folder, and that of the run whose checkpoint is judged."""
        own = self.folder.absolute()
        checkpoint = self._trainer.ckpt_path if self._trainer is not None else None  # <run>/checkpoints/last.ckpt
        if checkpoint is None:
            return [own]
        return list(dict.fromkeys([own, Path(checkpoint).absolute().parent.parent / own.name]))

    # ---- what is written besides -----------------------------------------------------------------

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        rows = module.score_table() if isinstance(module, KeepsResults) else []
        if not rows or not trainer.is_global_zero:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.table, lambda stream: stream.write(text.getvalue().encode()))

    def on_predict_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        data = trainer.datamodule
        names = data.names_to_predict() if isinstance(data, NamesToPredict) else []
        times = Counter(PurePosixPath(name).with_suffix("") for name in names)
        self._shared = {stem for stem, count in times.items() if count > 1}

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for row in outputs or []:
            for column, value in row.items():
                if isinstance(value, Image.Image) and value.mode == "I;16":
                    self._write_mat(column, PurePosixPath(row["name"]), np.asarray(value))

    def _write_mat(self, column: str, name: PurePosixPath, labels: NDArray[np.uint16]) -> None:
        stem = name.with_suffix("")
        # Not by what was written already: other processes write too.
        path = self.predictions / column / f"{name if stem in self._shared else stem}.mat"
        # As MATLAB counts: from 1. The last of 65 536 labels would not fit into 16 bits.
        values = labels.astype(np.uint32) + 1
        kind = np.uint16 if values.max() < LABELS_MAX else np.uint32
        write_atomically(path, lambda stream: savemat(stream, {"seg_lab": values.astype(kind)}, do_compression=True))


def _files(folder: Path, image: str, setting: str) -> tuple[Path, Path]:
    """The picture and the JSON file of a result."""
    place = folder / PurePosixPath(image)
    return place / f"{setting}.png", place / f"{setting}.json"


def _png(labels: Tensor) -> bytes:
    if not 0 <= int(labels.min()) <= int(labels.max()) < LABELS_MAX:
        raise ValueError(f"labels must be 0 to {LABELS_MAX - 1}, found {int(labels.min())} to {int(labels.max())}")
    stream = io.BytesIO()
    Image.fromarray(labels.cpu().numpy().astype(np.uint16)).save(stream, format="png")
    return stream.getvalue()


def _labels(content: bytes) -> Tensor:
    with Image.open(io.BytesIO(content)) as picture:
        return torch.from_numpy(np.array(picture).astype(np.int64))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
