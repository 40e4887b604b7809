"""Checkpoints that carry their own config, are written whole or not at all, and load without pickles."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO

from runs.atomic_files import write_atomically
from runs.errors import InputError
from runs.stages import Stage, stage_config

CONFIG_KEY = "reprise"


class ConfigInCheckpoint(pl.Callback):
    """Adds the run's config, as plain containers, to every checkpoint."""

    def __init__(self, config: Mapping[str, Any], stage: str) -> None:
        self.config, self.stage = dict(config), stage

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = {"config": self.config, "stage": self.stage}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint and swaps them, so that a full disk or a kill leaves the old one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint lazily (tensors stay on disk until used), refusing anything but plain data.

    Raises:
        InputError: if it does not exist, cannot be read, or carries no config of ours.
    """
    if path.is_dir():
        there = sorted(path.rglob("checkpoints/last.ckpt"), key=lambda file: file.stat().st_mtime)
        hint = f"give its checkpoint, ckpt_path={there[-1]}" if there else "and holds no checkpoint"
        raise InputError(f"ckpt_path={path} is a folder: {hint}")
    if not path.is_file():
        raise InputError(f"ckpt_path={path} does not exist: give a checkpoint, <run>/<stage>/checkpoints/last.ckpt")
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        raise InputError(f"ckpt_path={path} is no checkpoint, or a damaged one") from error
    if not isinstance(checkpoint, dict) or CONFIG_KEY not in checkpoint:
        raise InputError(
            f"ckpt_path={path} carries no config, so it was not written by train.py: "
            "give its weights to a new run instead (model.init_from=…)"
        )
    return checkpoint


def evaluation_config(path: Path) -> dict[str, Any]:
    """The config of the stage that wrote a checkpoint, ready to be judged.

    Everything about the run's folder and hardware is left to `conf/eval.yaml`, and nothing loads
    initial weights: they are all in the checkpoint.
    """
    carried = read_checkpoint(path)[CONFIG_KEY]
    config = stage_config(carried["config"], Stage(carried["stage"], Path()))
    for key in ("paths", "stage_dir", "logger", "ckpt_path", "optimized_metric"):
        config.pop(key, None)
    config["model"] = without_initial_weights(config["model"])
    return config


def without_initial_weights(node: Any) -> Any:
    """A model config whose weights come from a checkpoint: it must not look for others first."""
    replaced = {"init_from": None, "checkpoint_path": None, "pretrained": False}
    return _replace(node, lambda key, value: replaced.get(key, value))


def _replace(node: Any, rule: Callable[[str, Any], Any]) -> Any:
    if isinstance(node, Mapping):
        return {key: _replace(rule(key, value), rule) for key, value in node.items()}
    if isinstance(node, list):
        return [_replace(item, rule) for item in node]
    return node
