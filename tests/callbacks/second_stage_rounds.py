"""A tiny trained network, training images and processes for the tests of ISIM's later rounds."""

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from callbacks.iterative_step import IterativeStep
from components.dense_crf import CRFSettings
from runs.round_store import Generation, Ranks

CRF = CRFSettings(3.0, 3.0, 50.0, 5.0, 10.0, 3, 0.7)
IMAGE_MEAN, IMAGE_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLASS_NAMES = ["red", "green", "blue"]


class ColourMaps(nn.Module):
    """Class c is active where colour channel c is bright, at half the size.

    Its BatchNorm has seen other pictures: in training mode the maps of an image are others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Conv2d(3, 3, 2, stride=2, bias=False)
        self.colours.weight.data = torch.eye(3)[:, :, None, None].repeat(1, 1, 2, 2) / 4
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean.copy_(torch.tensor([1.0, 0.9, 1.1]))
        self.norm.running_var.copy_(torch.tensor([1.5, 1.0, 0.5]))

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm(self.colours(image))


class Images(Dataset):
    """Squares of different sizes of image, one class each but image 1, which has two; the last has no label."""

    def __init__(self, count: int, with_truth: bool = True) -> None:
        self.count, self.with_truth = count, with_truth

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = np.random.default_rng(index)
        height, width = 40 + 2 * (index % 3), 48
        image, mask = np.full((3, height, width), 60.0), np.zeros((height, width), np.int64)
        y, x = generator.integers(5, 15, 2)
        squares = [(index % 3, y, x, 20)]
        if index == 1:
            squares = [(1, 4, 3, 18), (2, 16, 25, 20)]
        label = torch.zeros(3)
        for colour, y, x, side in squares:
            image[colour, y : y + side, x : x + side] = 150 + 100 * np.linspace(0, 1, side)  # stronger to the right
            mask[y : y + side, x : x + side] = 1 + colour
            if index < self.count - 1:
                label[colour] = 1
        image += generator.normal(0, 3, image.shape)
        sample = {
            "image": torch.from_numpy(image.clip(0, 255).astype(np.uint8)),
            "label": label,
            "index": index,
            "name": f"image {index}",
        }
        return {**sample, "score_mask": torch.from_numpy(mask)} if self.with_truth else sample


def datamodule(count: int, with_truth: bool = True) -> Any:
    return SimpleNamespace(class_names=CLASS_NAMES, training_images=functools.partial(Images, count, with_truth))


def write_checkpoint(network: nn.Module, path: Path) -> None:
    """A module's checkpoint as a stage leaves it."""
    torch.save({"state_dict": {f"network.{k}": v for k, v in network.state_dict().items()}, "epoch": 1}, path)


def run_round(make: Callable[[Path], IterativeStep], data: Any, folder: Path, processes: int = 1) -> tuple:
    """One round by so many processes (threads that truly gather): its generation and metrics."""
    barrier, slots = threading.Barrier(processes), [None] * processes
    results: list[Any] = [None] * processes

    def work(rank: int) -> None:
        def all_gather(value: Any) -> list[Any]:
            slots[rank] = value
            barrier.wait(timeout=60)
            everything = list(slots)
            barrier.wait(timeout=60)
            return everything

        try:
            step = make(folder)
            step.round, step._trainer = 1, SimpleNamespace(progress_bar_callback=None, is_global_zero=rank == 0)
            step._ranks = step.store.ranks = Ranks(rank, processes, all_gather)
            with torch.no_grad():
                metrics = step.run(step._trainer, SimpleNamespace(device=torch.device("cpu")), data)
            results[rank] = step, metrics
        except Exception as error:
            barrier.abort()
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    step, metrics = results[0]
    return step, step.store.read(1), metrics


def same_masks(one: Generation, other: Generation) -> bool:
    indices = one.indices("mask")
    return indices.tolist() == other.indices("mask").tolist() and all(
        np.array_equal(one["mask"][i], other["mask"][i]) for i in indices
    )
