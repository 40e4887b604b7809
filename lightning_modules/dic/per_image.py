"""Segmenters that take one image at a time and learn nothing across images: what DIC and its rivals share.

Settings, seeds, results that outlast the process, scores (best setting of each image, of the set, each alone),
predictions and figures. What a segmentation is, a subclass says in `segment`.
"""

import hashlib
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from components.metrics.regions import SCORES, RegionBenchmark, RegionScores, region_scores_of_all, resize_labels
from components.seeding import seed_streams
from lightning_modules.dic.figures import boundaries_on, inner_step_curves, magnified, mean_colours, segmentation_rows
from runs.errors import InputError

DESCRIPTIONS = ("labels", "first_labels", "steps", "seconds")  # of a label map, beside its scores
SHOWN_IMAGES = 4  # in the figures of an evaluation
INPUTS = ("image", "guide", "ucm2")  # fields of a sample that a segmentation may read

Sample = dict[str, Any]
_log = logging.getLogger("reprise")  # what is said there reaches the terminal


@dataclass(frozen=True)
class Segmentation:
    """A label map and how it came about.

    Attributes:
        labels: (h, w) int64, from 0; label numbers mean nothing, and a label may have several regions.
        curves: what each inner step measured, (t,) each: ``loss`` and ``labels`` (live ones) for DIC, none
            for methods without steps.
        seconds: that it took.
    """

    labels: Tensor
    curves: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = float("nan")


class ResultKeeper(Protocol):
    """What outlasts the process: see `callbacks.per_image_results`."""

    def find(self, image: str, setting: str, fingerprint: str) -> Segmentation | None:
        """The result of an image and a setting, if it was made from the very same things."""
        ...

    def keep(self, image: str, setting: str, fingerprint: str, made: Segmentation, about: Mapping[str, Any]) -> None:
        """Writes a result, with plain values about it."""
        ...

    def inner_step(self, done: int, total: int, note: str) -> None:
        """Shows how far the segmentation at work is."""
        ...


class PerImageSegmenter(pl.LightningModule, ABC):
    """Segments each image with each setting; scores label maps against human ones.

    A batch is one image: ``image`` (3, h, w) uint8, ``guide`` (h, w) int64 superpixels 0..K-1, ``human`` a list
    of (H, W) int64 maps (empty where unknown), ``size`` (H, W), ``name``, ``index``, ``guide_source``; in training
    also ``setting``, the position of one setting, and ``spare`` in a batch that counts for nothing.

    One training step makes one label map. Test and prediction take the maps that are there (`ResultKeeper`) and
    make the missing ones. Label maps of another size than ``size`` are enlarged by the nearest pixel centre.
    PRI and SC are 0..1, VoI bits, GCE 0..1, BDE pixels.

    Args:
        settings: numbers of each setting, named by ``setting_names``.
        ois_select: which setting counts for an image in ``test/<score>``: for each score its own best
            (``per_metric``, the benchmark's way) or the one with the best PRI for all (``pri``).
        seed: of the run; a segmentation depends on it, on pixels, guide, setting, hyper-parameters, device and
            precision, and not on order, neighbours, file name or number of processes.

    Raises:
        InputError: no setting, one twice, or one with too few or too many numbers.
    """

    gradients_in_evaluation = True
    setting_names: ClassVar[tuple[str, ...]]

    def __init__(
        self, settings: Sequence[Sequence[float]], ois_select: Literal["per_metric", "pri"], seed: int
    ) -> None:
        super().__init__()
        names = ", ".join(self.setting_names)
        if not settings:
            raise InputError(f"model.settings is empty: give a list of [{names}]")
        for setting in settings:
            if len(setting) != len(self.setting_names):
                raise InputError(f"model.settings: {list(setting)} must be [{names}]")
        self.settings, self.ois_select, self.seed = [list(setting) for setting in settings], ois_select, seed
        self.labels_of_settings = [self.setting_name(setting) for setting in settings]
        if twice := {name for name in self.labels_of_settings if self.labels_of_settings.count(name) > 1}:
            raise InputError(f"model.settings holds {min(twice)} twice")
        self.automatic_optimization = False
        self.unused = torch.nn.Parameter(torch.zeros(()))  # DistributedDataParallel refuses a module without any
        self.results: ResultKeeper | None = None
        self.benchmark = RegionBenchmark(len(settings))
        self.guide_benchmark, self.floor_benchmark = RegionBenchmark(1), RegionBenchmark(1)
        self.table: list[dict[str, Any]] = []  # a row for each tested image and setting
        self.pictures: list[list[tuple[NDArray[np.uint8], str]]] = []
        self.curves: dict[str, dict[str, Tensor]] = {}

    # ---- what a method says --------------------------------------------------------------------

    @abstractmethod
    def segment(self, sample: Sample, setting: Sequence[float]) -> Segmentation:
        """One label map. All random streams are seeded, gradients are on."""

    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """Plain values that, beside setting, seed and the sample's fields, decide what a label map is."""

    # ---- one image, one setting ------------------------------------------------------------------

    def use_results(self, results: ResultKeeper) -> None:
        """Called once before the first batch."""
        self.results = results

    def setting_name(self, setting: Sequence[float]) -> str:
        """``C50_M32``."""
        return "_".join(f"{name}{_written(value)}" for name, value in zip(self.setting_names, setting, strict=True))

    def segmentation(self, sample: Sample, place: int) -> Segmentation:
        """The label map of an image and the setting at a place of the list: found, or made and kept."""
        setting, label = self.settings[place], self.labels_of_settings[place]
        fingerprint = self.fingerprint(sample, setting)
        found = self.results.find(sample["name"], label, fingerprint) if self.results is not None else None
        if found is not None:
            return found
        with torch.enable_grad():
            # The pixels stand for the image: its file name and its place in a list do not reach the streams.
            seed_streams(self.seed, _digest(sample["image"]), *(float(value) for value in setting))
            started = time.perf_counter()
            made = self.segment(sample, setting)
            labels = made.labels.cpu()  # waits for the device
        seconds = time.perf_counter() - started
        made = Segmentation(labels, {name: curve.cpu() for name, curve in made.curves.items()}, seconds)
        if self.results is not None:
            scores = self.scores([made.labels], sample)
            about = {
                "setting": dict(zip(self.setting_names, setting, strict=True)),
                "seed": self.seed,
                "superpixels": int(sample["guide"].max()) + 1,
                "guide_source": sample["guide_source"],
                "labels": len(made.labels.unique()),
                "scores": scores[0].as_dict() if scores else None,
            }
            self.results.keep(sample["name"], label, fingerprint, made, about)
        return made

    def fingerprint(self, sample: Sample, setting: Sequence[float]) -> str:
        """A digest of all that decides the label map."""
        trainer = self._trainer
        decided = {
            "method": full_name(type(self)),
            "setting": [float(value) for value in setting],
            "seed": self.seed,
            "precision": "32-true" if trainer is None else str(trainer.precision),
            **self.recipe(),
            "inputs": {name: _digest(sample[name]) for name in INPUTS if sample.get(name) is not None},
        }
        return hashlib.blake2b(json.dumps(decided, sort_keys=True).encode(), digest_size=16).hexdigest()

    def scores(self, label_maps: Sequence[Tensor], sample: Sample) -> list[RegionScores]:
        """Of each label map, enlarged to the human maps; empty where there are none."""
        if not sample["human"]:
            return []
        size = _plain_size(sample)
        return region_scores_of_all([resize_labels(labels, size) for labels in label_maps], sample["human"])

    # ---- Lightning -------------------------------------------------------------------------------

    def training_step(self, batch: Sample, batch_idx: int) -> None:
        """One image, one setting."""
        self.optimizers().step()  # of no weights: it counts the label maps for the loggers
        if "spare" in batch:  # this process has fewer label maps to make
            return
        made = self.segmentation(batch, int(batch["setting"]))
        logged = {name: curve[-1] for name, curve in made.curves.items() if len(curve)}
        logged |= {"labels": len(made.labels.unique()), "seconds": made.seconds}
        if scores := self.scores([made.labels], batch):
            logged |= scores[0].as_dict()
        for name, value in logged.items():
            self.log(f"train/{name}", float(value), on_step=True, on_epoch=False, batch_size=1, prog_bar=name == "pri")

    def configure_optimizers(self) -> None:
        """A method that learns builds its own optimiser for each image."""

    def on_test_start(self) -> None:
        """Forgets what an earlier test saw."""
        self.table, self.pictures, self.curves = [], [], {}

    def test_step(self, batch: Sample, batch_idx: int) -> None:
        """One image with all settings, beside its superpixels and one region for all."""
        if "spare" in batch:
            return
        made = [self.segmentation(batch, place) for place in range(len(self.settings))]
        guide = batch["guide"].cpu()
        scores = self.scores([*(one.labels for one in made), guide, torch.zeros_like(guide)], batch)
        if scores:
            self.benchmark.update(scores[:-2])
            self.guide_benchmark.update(scores[-2:-1])
            self.floor_benchmark.update(scores[-1:])
        for place, one in enumerate(made):
            counts = one.curves.get("labels")
            row = {"index": int(batch["index"]), "image": batch["name"], "setting": self.labels_of_settings[place]}
            row |= scores[place].as_dict() if scores else dict.fromkeys(SCORES)
            row |= {
                "labels": len(one.labels.unique()),
                "first_labels": None if counts is None else int(counts[0]),
                "steps": None if counts is None else len(counts),
                "seconds": one.seconds,
                "superpixels": int(guide.max()) + 1,
                "guide_source": batch["guide_source"],
            }
            self.table.append(row)
        if len(self.pictures) < SHOWN_IMAGES:
            shown = max(range(len(made)), key=lambda place: scores[place].pri) if scores else 0
            self.show(batch, made[shown], self.labels_of_settings[shown])

    def on_test_epoch_end(self) -> None:
        """Logs scores beside those of one region for the whole image, and what the label maps are like."""
        if self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, self.table)
            self.table = [row for part in parts for row in part]
        self.table.sort(key=lambda row: row["index"])  # stable: the settings of an image stay in order
        if not self.table:
            return
        for name in (*DESCRIPTIONS, "superpixels"):
            known = [row[name] for row in self.table if row[name] is not None]
            if known:
                self.log(f"test/{name}", float(np.mean(known)))
        judged = len({row["index"] for row in self.table if row["pri"] is not None})
        self.log("test/judged_images", float(judged))
        if not judged:
            _log.info("no image has a human map: all were segmented, none was judged")
            return
        floor = self.floor_benchmark.compute()
        for name, value in self.judgement().items():
            self.log(f"test/{name}", value)
            self.log(f"floor/{name}", floor[f"setting_0/{name.rpartition('_')[2]}"])
        for benchmark in (self.benchmark, self.guide_benchmark, self.floor_benchmark):
            benchmark.reset()

    def judgement(self) -> dict[str, Tensor]:
        """All scores of the test by name: ``pri`` as `ois_select` says, each other way of choosing a setting
        where there are several, each setting alone, and the superpixels.
        """
        values, guide = self.benchmark.compute(), self.guide_benchmark.compute()
        ways = {"": "ois" if self.ois_select == "per_metric" else "ois_by_pri"}
        if len(self.settings) > 1:
            ways |= {"ois_": "ois", "ois_by_pri_": "ois_by_pri", "ods_": "ods"}
            ways |= {f"{label}_": f"setting_{place}" for place, label in enumerate(self.labels_of_settings)}
        found = {f"{prefix}{name}": values[f"{way}/{name}"] for prefix, way in ways.items() for name in SCORES}
        return found | {f"guide_{name}": guide[f"setting_0/{name}"] for name in SCORES}

    def score_table(self) -> list[dict[str, Any]]:
        """The rows of the last test, all processes' together: for ``scores.csv``."""
        return self.table

    # ---- prediction and pictures -------------------------------------------------------------------

    def predict_step(self, batch: Sample, batch_idx: int) -> list[dict[str, Any]]:
        """Of each setting the labels as a 16-bit picture and their boundaries on the image, at full size."""
        if "spare" in batch:
            return []
        row: dict[str, Any] = {"name": batch["name"]}
        size = _plain_size(batch)
        pixels = _pixels(enlarge_pixels(batch["image"].cpu(), size))
        for place, label in enumerate(self.labels_of_settings):
            labels = resize_labels(self.segmentation(batch, place).labels, size).numpy()
            row[f"{label}_count"] = len(np.unique(labels))
            row[f"{label}_labels"] = Image.fromarray(labels.astype(np.uint16))
            row[f"{label}_boundaries"] = Image.fromarray(boundaries_on(pixels, labels))
        return [row]

    def show(self, batch: Sample, made: Segmentation, label: str) -> None:
        """Keeps an evaluated image: itself, a human map, its superpixels, the label map; and its curves."""
        size = tuple(batch["image"].shape[-2:])
        pixels, guide = magnified(_pixels(batch["image"])), batch["guide"].cpu().numpy()
        labels = magnified(resize_labels(made.labels, size).numpy())
        row = [(pixels, str(batch["name"]))]
        if batch["human"]:
            human = magnified(resize_labels(batch["human"][0].cpu(), size).numpy())
            row.append((boundaries_on(pixels, human), "one human map"))
        superpixels = f"{guide.max() + 1} superpixels ({batch['guide_source']})"
        row.append((boundaries_on(pixels, magnified(guide)), superpixels))
        row.append((boundaries_on(pixels, labels), f"{label}: {len(np.unique(labels))} labels"))
        row.append((mean_colours(pixels, labels), "mean colour of each label"))
        self.pictures.append(row)
        if made.curves:
            self.curves[f"{batch['name']}, {label}"] = made.curves

    def figures(self, stage: str) -> dict[str, Figure]:
        """The first judged images with all their boundaries, and loss and live labels by inner step."""
        if stage != "test" or not self.pictures:
            return {}
        figures = {"segmentations": segmentation_rows(self.pictures)}
        if self.curves:
            figures["inner_steps"] = inner_step_curves(self.curves)
        return figures


def full_name(thing: Any) -> str:
    """Of a class or a function, its module included."""
    return f"{thing.__module__}.{thing.__qualname__}"


def enlarge_pixels(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture (3, h, w) uint8 at another size, for the eye."""
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image[None].float(), size, mode="bilinear")[0].round().to(torch.uint8)


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    return image.permute(1, 2, 0).cpu().numpy()


def _digest(values: Tensor | NDArray) -> str:
    array = np.ascontiguousarray(values.cpu().numpy() if isinstance(values, Tensor) else values)
    digest = hashlib.blake2b(repr((array.dtype.str, array.shape)).encode(), digest_size=16)
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _written(value: float) -> str:
    """All digits: numbers that differ have names that differ."""
    return repr(int(value) if float(value).is_integer() else float(value))


def _plain_size(sample: Sample) -> tuple[int, int]:
    height, width = sample["size"]
    return int(height), int(width)
