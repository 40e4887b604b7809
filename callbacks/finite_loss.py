"""Stops a run whose loss is no longer a number, and names the step and the files of its batch."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from torch import Tensor

from runs.errors import InputError, first_few


@runtime_checkable
class NamesSamples(Protocol):
    """A datamodule that can tell which file a training sample comes from."""

    def sample_names(self, part: str, indices: list[int]) -> list[str]:
        """Names of samples of one part of a batch (`""` for a flat batch, or `"labeled"`, …)."""
        ...


class FiniteLoss(pl.Callback):
    """Looks at the loss of every step, `check_every_n_steps` at a time.

    Looking waits for the GPU, so the losses are kept on the device until then; the check also runs
    before every checkpoint, so that none is ever written with broken weights.

    Raises:
        InputError: at the first loss that is NaN or infinite.
    """

    def __init__(self, check_every_n_steps: int) -> None:
        self.check_every_n_steps = check_every_n_steps
        self._recent: list[tuple[int, int, Tensor, dict[str, Tensor]]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            return
        self._recent.append((trainer.current_epoch, batch_idx, loss.detach(), _indices(batch)))
        if len(self._recent) >= self.check_every_n_steps or loss.device.type == "cpu":
            self._check(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._check(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> None:
        if not self._recent:
            return
        recent, self._recent = self._recent, []
        finite = torch.stack([loss.float().isfinite() for _, _, loss, _ in recent]).cpu()
        if bool(finite.all()):
            return
        epoch, batch_idx, loss, indices = recent[int((~finite).nonzero()[0])]
        # A module with optimisers of its own takes no clipping from the trainer.
        clipping = ", set trainer.gradient_clip_val=1.0" if trainer.lightning_module.automatic_optimization else ""
        raise InputError(
            f"the loss is {float(loss)} at batch {batch_idx} of epoch {epoch}{self._files(trainer, indices)}: "
            f"lower model.optimizer.lr{clipping}, or look at these samples; "
            "the last checkpoint is from before"
        )

    def _files(self, trainer: pl.Trainer, indices: dict[str, Tensor]) -> str:
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, NamesSamples):
            names = [n for part, index in indices.items() for n in datamodule.sample_names(part, index.tolist())]
            return f" (files {first_few(names)})"
        samples = [int(i) for index in indices.values() for i in index.tolist()]
        return f" (samples {first_few(samples)})" if samples else ""


def _indices(batch: Any) -> dict[str, Tensor]:
    """The `index` entries of a batch, by the part of the batch that they belong to."""
    if not isinstance(batch, Mapping):
        return {}
    if isinstance(batch.get("index"), Tensor):
        return {"": batch["index"]}
    return {
        part: nested["index"] for part, nested in batch.items() if isinstance(nested, Mapping) and "index" in nested
    }
