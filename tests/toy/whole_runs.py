"""What tests of whole runs share: train and read what is left, break a closed form off, the paper's number."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lightning_modules.closed_form import ClosedFormModule
from runs.composition import compose_config, to_plain
from runs.results import paper_row
from tests.toy.running import train_here


def train(run_dir: Path, *words: str) -> dict:
    """What the run's `result.json` holds."""
    train_here(run_dir, *words)
    return json.loads((run_dir / "result.json").read_text())


def state_of(run_dir: Path) -> dict[str, torch.Tensor]:
    """The weights and buffers of the last checkpoint."""
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file by its columns."""
    with path.open() as file:
        return list(csv.DictReader(file))


class Broken(Exception):
    pass


@contextmanager
def broken_after(steps: int, method: type[ClosedFormModule]) -> Iterator[None]:
    """The run inside ends when its module is asked for one step more."""
    whole, calls = method.fit_closed_form, []

    def breaking(self, batch):
        calls.append(1)
        if len(calls) == steps + 1:
            raise Broken
        return whole(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        patch.setattr(method, "fit_closed_form", breaking)
        yield


def paper_number(metric: str, *words: str) -> float | None:
    """What a run of these words cites for a metric; None for nothing."""
    config = compose_config(["data.root=x", "paths.run_dir=x", *words])
    return paper_row(to_plain(config))["metrics"].get(metric)
