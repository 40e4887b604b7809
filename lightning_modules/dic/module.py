"""DIC on one page: a small network learns one image from its own labels, voted inside superpixels (Algorithm 1)."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_modules.dic.losses import refinement_loss, superpixel_vote
from lightning_modules.dic.per_image import PerImageSegmenter, Sample, Segmentation, full_name
from runs.errors import InputError

PRECISIONS = ("32-true", "bf16-mixed")


class DICModule(PerImageSegmenter):
    """Deep image clustering, overfitted to each image and setting from scratch. Batches: see `PerImageSegmenter`.

    Args:
        fts: called with ``channels`` and ``width``; image (1, 3, H, W) in 0..1 to features (1, C, H, W).
        dcs: called with ``channels`` and ``centres``; features (N, C) to aggregated features (N, C).
        optimizer: called with the parameters.
        width: factor on the hidden channels of the feature network; 1 is the paper's.
        T: inner steps.
        min_labels: fewer distinct labels than this after the vote end the steps.
        settings: [C, M] each: channels, which are the largest number of labels, and centres of the clustering.
        ois_select: see `PerImageSegmenter`.
        seed: of the run.

    Raises:
        InputError: T, M or Gamma below 1, C below 2, a width of 0 or below, min_labels below 0; in `setup` a precision
            other than float32 and bfloat16; in `segment` a loss that is not finite.
    """

    setting_names: ClassVar[tuple[str, ...]] = ("C", "M")

    def __init__(
        self,
        fts: Callable[..., nn.Module],
        dcs: Callable[..., nn.Module],
        optimizer: Callable[..., Optimizer],
        width: float,
        T: int,
        min_labels: int,
        settings: list[list[int]],
        ois_select: Literal["per_metric", "pri"],
        seed: int,
    ) -> None:
        super().__init__(settings, ois_select, seed)
        if T < 1:
            raise InputError(f"model.T={T} must be 1 inner step or more")
        if width <= 0:
            raise InputError(f"model.width={width} must be above 0")
        if min_labels < 0:
            raise InputError(f"model.min_labels={min_labels} must be 0 labels or more")
        dcs(channels=2, centres=1)  # refuses its own arguments now and not at the first image
        for C, M in settings:
            if C < 2 or M < 1:
                raise InputError(f"model.settings: [{C}, {M}] needs 2 channels or more and 1 centre or more")
        self.fts, self.dcs, self.make_optimizer = fts, dcs, optimizer
        self.width, self.T, self.min_labels = width, T, min_labels

    def segment(self, sample: Sample, setting: Sequence[float]) -> Segmentation:
        """Algorithm 1: T steps of refined self-training on one image; returns the labels of the last vote.

        Where one superpixel is the whole image the vote leaves one label, so no step is made.
        """
        C, M = (int(value) for value in setting)
        guide = sample["guide"].flatten()  # S, line 3
        K = int(guide.max()) + 1
        if K == 1:
            return Segmentation(torch.zeros_like(sample["guide"]))
        image = sample["image"][None].float().div(255).contiguous(memory_format=torch.channels_last)

        # Line 4: a new network for each image and setting, so that their order changes nothing.
        fts = self.fts(channels=C, width=self.width).to(image.device, memory_format=torch.channels_last)
        dcs = self.dcs(channels=C, centres=M).to(image.device)  # draws Omega^0, the same in all steps
        optimizer = self.make_optimizer([p for net in (fts, dcs) for p in net.parameters() if p.requires_grad])

        losses, live = [], []
        for t in range(1, self.T + 1):  # line 5
            Y = fts(image)  # line 6
            Upsilon = dcs(Y[0].flatten(1).T)  # lines 7-12: Eq. 2 to 4, always from Omega^0
            Delta = Upsilon.detach().argmax(dim=1)  # line 13: Eq. 5; never from a network in eval mode
            refined = superpixel_vote(Delta, guide, K, C)  # line 14: Eq. 6, 7

            loss = refinement_loss(Upsilon, refined)  # line 15: Eq. 8
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            losses.append(loss.detach())
            live.append(len(refined.unique()))
            if self.results is not None:
                self.results.inner_step(t, self.T, f"{live[-1]} labels")
            if live[-1] < self.min_labels:  # official code
                break

        curves = {"loss": torch.stack(losses), "labels": torch.tensor(live)}
        finite = curves["loss"].isfinite()
        if not finite.all():  # all pixels of a NaN map have one label, as in a map that merged
            raise InputError(
                f"{sample['name']} with {self.setting_name(setting)}: the loss is not finite in inner step "
                f"{int(finite.long().argmin()) + 1} of {self.T}; lower model.optimizer.lr"
            )
        return Segmentation(refined.view(sample["guide"].shape), curves)  # voted (official code); line 17 is unvoted

    def recipe(self) -> dict[str, Any]:
        """The hyper-parameters, those of the injected parts included."""
        parts = {"fts": self.fts, "dcs": self.dcs, "optimizer": self.make_optimizer}
        return {
            "T": self.T,
            "min_labels": self.min_labels,
            "width": self.width,
            **{name: [full_name(part.func), part.keywords] for name, part in parts.items()},
        }

    def setup(self, stage: str) -> None:
        """Refuses other floats: in fp16 gradients that are means over all pixels would be 0; the rest is untried."""
        if self.trainer.precision not in PRECISIONS:
            raise InputError(
                f"trainer.precision={self.trainer.precision} is not for DIC: use {' or '.join(PRECISIONS)}"
            )
