"""The result of a run: `result.json`, and the table that sets it beside the floor and the paper."""

import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table

from runs.atomic_files import write_atomically
from runs.composition import PROJECT_ROOT
from runs.folders import RESULT_FILE
from runs.numbers import format_number

FLOOR_PREFIX = "floor/"


class Stopwatch(pl.Callback):
    """Counts training samples and seconds; a resumed run goes on counting."""

    def __init__(self) -> None:
        self.fit_seconds = 0.0
        self.train_seconds = 0.0
        self.samples = 0
        self.steps = 0
        self._fit_started = self._batch_started = 0.0

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._fit_started = time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._batch_started = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._batch_started == 0.0:  # resumed in mid-epoch: no epoch start was called
            self._batch_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # From batch end to batch end: waiting for the loader counts, validation does not.
        now = time.perf_counter()
        self.train_seconds += now - self._batch_started
        self._batch_started = now
        self.samples += count_samples(batch) * trainer.world_size
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        now = time.perf_counter()
        return {
            "fit_seconds": self.fit_seconds + now - self._fit_started,
            "train_seconds": self.train_seconds,
            "samples": self.samples,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.fit_seconds += time.perf_counter() - self._fit_started

    def summary(self) -> dict[str, float | int | None]:
        """Speed and memory of the fit."""
        rate = self.samples / self.train_seconds if self.train_seconds else None
        return {
            "fit_seconds": round(self.fit_seconds, 3),
            "train_seconds": round(self.train_seconds, 3),
            "steps": self.steps,
            "samples_per_second": round(rate, 3) if rate else None,
            "peak_memory_mib": round(peak_memory_mib(), 1),
        }


def count_samples(batch: Any) -> int:
    """How many samples a batch holds: its `index` entries, or those of the batches nested in it."""
    if isinstance(batch, Mapping):
        if "index" in batch:
            return len(batch["index"])
        return sum(count_samples(part) for part in batch.values())
    return int(getattr(batch, "num_graphs", 0))


def peak_memory_mib() -> float:
    """Peak memory in MiB: of the GPU where one is used, of this process otherwise."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def split_floors(metrics: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Separates `floor/top1` from `test/top1`; the floors come back without their prefix."""
    floors = {k.removeprefix(FLOOR_PREFIX): v for k, v in metrics.items() if k.startswith(FLOOR_PREFIX)}
    return {k: v for k, v in metrics.items() if not k.startswith(FLOOR_PREFIX)}, floors


def paper_row(config: Mapping[str, Any]) -> dict[str, Any]:
    """The paper's numbers for what ran: those of the variant where one was chosen."""
    paper = dict(config.get("paper") or {})
    variants = paper.pop("variants", {})
    if config.get("variant_name"):
        paper["metrics"] = variants.get(config["variant_name"], {})
    return paper


def describe_software() -> dict[str, Any]:
    """Versions, machine and commit that a number belongs to."""
    commit = subprocess.run(
        ["git", "-C", str(PROJECT_ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    packages = ("torch", "pytorch-lightning", "timm", "torchmetrics", "scikit-learn", "hydra-core")
    return {
        "git_commit": commit or None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
    }


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Writes `result.json` whole or not at all: its being there means that the work is done."""
    text = json.dumps(result, indent=2, allow_nan=True) + "\n"
    write_atomically(folder / RESULT_FILE, lambda file: file.write(text.encode()))


def read_result(folder: Path) -> dict[str, Any]:
    """Reads a result back."""
    return json.loads((folder / RESULT_FILE).read_text())


def print_result(result: Mapping[str, Any]) -> None:
    """The table at the end of a stage: this run, the floor on the same data, the paper."""
    paper = result.get("paper") or {}
    paper_metrics = paper.get("metrics") or {}
    title = ", ".join(str(result[key]) for key in ("name", "variant", "stage") if result.get(key))
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for column in ("this run", "floor", "paper"):
        table.add_column(column, justify="right")
    for name, value in result["metrics"].items():
        floor = result["floors"].get(name.partition("/")[2])
        table.add_row(name, format_number(value), format_number(floor), format_number(paper_metrics.get(name)))
    console = Console(markup=False)
    console.print(table)
    if paper.get("title"):
        console.print(
            "paper: " + ", ".join(str(paper[k]) for k in ("title", "table", "row") if paper.get(k)), soft_wrap=True
        )
    if paper.get("note"):
        console.print(str(paper["note"]), soft_wrap=True)
