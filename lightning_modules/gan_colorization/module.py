"""The colouriser on one page: a U-Net gives a photograph its colours, a patch discriminator tells them from true ones.

Adversarial and L1 loss by turns (Section 3.3). The paper's Eq. 1 mixes up its symbols; here x is the lightness L of a
photograph, y its colour (a, b), G(x) the predicted colour, D(x, y) the discriminator's logits: it always sees x.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from components.colour import join, lightness, split
from components.figures import image_rows
from components.metrics.colour import ColourScores
from components.metrics.floors import beside_floors
from components.seeding import derived_seed
from lightning_modules.gan_colorization.network import Generator, NormEval, PatchDiscriminator
from runs.errors import InputError

SHOWN_IMAGES = 8  # in the figures

Batch = dict[str, Any]


class GanColorizationModule(pl.LightningModule):
    """Learns to colour photographs from photographs alone.

    Batches: ``image (B, 3, side, side)`` uint8, ``index``; prediction takes one at a time, with ``whole (1, 3, H, W)``.

    The generator's dropout is its only noise and stays on in evaluation (3.3.3). There it is drawn from the seed and
    the photograph, so that a score or a picture does not depend on what came before.

    Args:
        generator: x to G(x).
        discriminator: (x, y) to logits of patches, real above 0.
        optimizer: called with the generator's parameters.
        discriminator_optimizer: called with the discriminator's.
        gan: false leaves the discriminator out: L1 loss alone.
        l1_weight: lambda of Eq. 3.
        ssim_sigma: standard deviation of SSIM's window, pixels.
        predict_dropout: whether the dropout stays on when a folder is coloured.
        predict_norm_eval: statistics of the BatchNorms there: of the training, or of the one photograph.
        seed: of the dropout in evaluation.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: PatchDiscriminator,
        optimizer: Callable[..., Optimizer],
        discriminator_optimizer: Callable[..., Optimizer],
        gan: bool,
        l1_weight: float,
        ssim_sigma: float,
        predict_dropout: bool,
        predict_norm_eval: NormEval,
        seed: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # two optimisers by turns
        self.generator, self.discriminator = generator, discriminator if gan else None
        self.make_optimizer, self.make_discriminator_optimizer = optimizer, discriminator_optimizer
        self.l1_weight, self.seed = l1_weight, seed
        self.predict_dropout, self.predict_norm_eval = predict_dropout, predict_norm_eval
        self.val_scores, self.test_scores = ColourScores(ssim_sigma), ColourScores(ssim_sigma)
        self.shown: list[
            tuple[Tensor, Tensor]
        ] = []  # pixels of an evaluated image, true and predicted, (3, side, side)
        self.course: dict[int, Tensor] = {}  # the predicted ones by finished epochs, (images, 3, side, side) uint8

    def forward(self, image: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) to colour (B, 2, H, W), (a, b) / 128."""
        return self.generator(lightness(image)).float()

    # ---- training ------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """D on true colours, D on predicted ones, then G: a step of each optimiser."""
        x, y = split(batch["image"])
        predicted = self.generator(x)  # G(x)
        g_l1 = F.l1_loss(predicted.float(), y)  # Eq. 2
        losses = {"g_l1": g_l1}
        if self.discriminator is None:
            optimizer_g = self.optimizers()
            self.step(optimizer_g, self.l1_weight * g_l1)
        else:
            optimizer_g, optimizer_d = self.optimizers()
            # Two passes: in one batch of both BatchNorm would tell true from predicted by itself.
            losses["d_real"] = adversarial_loss(self.discriminator(x, y), real=True)
            losses["d_fake"] = adversarial_loss(self.discriminator(x, predicted.detach()), real=False)
            self.step(optimizer_d, 0.5 * (losses["d_real"] + losses["d_fake"]))  # Eq. 1, for D
            with self.toggled_optimizer(optimizer_g):  # nothing of D learns from G's loss
                losses["g_adv"] = adversarial_loss(self.discriminator(x, predicted), real=True)  # Eq. 1, for G
                self.step(optimizer_g, losses["g_adv"] + self.l1_weight * g_l1)  # Eq. 3
        for name, value in losses.items():
            self.log(
                f"train/{name}", value.detach(), on_step=False, on_epoch=True, sync_dist=True, batch_size=len(x),
                prog_bar=True,
            )  # fmt: skip
        return {"loss": sum(losses.values()).detach()}  # to be looked at: is it still a number?

    def step(self, optimizer: Optimizer, loss: Tensor) -> None:
        """One step of one of the two networks."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> list[Optimizer]:
        """One for G, and one for D where there is one."""
        optimizers = [self.make_optimizer(self.generator.parameters())]
        if self.discriminator is not None:
            optimizers.append(self.make_discriminator_optimizer(self.discriminator.parameters()))
        return optimizers

    # ---- evaluation ------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores the predicted colours."""
        self.judge(batch, batch_idx, self.val_scores)

    def on_validation_epoch_end(self) -> None:
        """Logs the scores; that of no colour at all is ``val/floor_<name>``."""
        self.log_dict({f"val/{name}": value for name, value in self.scores_of(self.val_scores).items()})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores the predicted colours."""
        self.judge(batch, batch_idx, self.test_scores)

    def on_test_epoch_end(self) -> None:
        """Logs all scores beside those of no colour at all."""
        scores = self.scores_of(self.test_scores)
        counts = {f"test/{name}": scores.pop(name) for name in ("images", "grey_images")}
        self.log_dict({**beside_floors(scores), **counts})

    def judge(self, batch: Batch, batch_idx: int, scores: ColourScores) -> None:
        """Colours a batch and compares."""
        if batch_idx == 0:
            self.shown = []
        self.draw_noise("evaluation", batch["index"].tolist())
        predicted = self(batch["image"])
        scores.update(batch["image"], predicted)
        for image, colour in zip(batch["image"], predicted, strict=True):
            if len(self.shown) == SHOWN_IMAGES:
                break
            self.shown.append((image.cpu(), coloured(image[None], colour[None])[0].cpu()))

    def scores_of(self, scores: ColourScores) -> dict[str, Tensor]:
        """The scores as numbers of one type, and the metric ready for the next epoch.

        Raises:
            InputError: no image had any colour.
        """
        values = {name: value.float() for name, value in scores.compute().items()}
        scores.reset()
        if values["images"] == 0:
            raise InputError(
                f"all {int(values['grey_images'])} photographs to judge by are grey: there is no colour to compare with"
            )
        return values

    def draw_noise(self, *place: object) -> None:
        """Fixes the dropout of what follows; a training batch is seeded by its own place in the run."""
        torch.manual_seed(derived_seed(self.seed, *place))

    # ---- prediction and pictures -------------------------------------------------------------------

    def on_predict_start(self) -> None:
        """Switches dropout and BatchNorms as asked for."""
        self.generator.keep_dropout(self.predict_dropout)
        self.generator.use_statistics(self.predict_norm_eval)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """A photograph of its own size: its own lightness, with the colours enlarged from the network's size."""
        name, whole = batch["name"][0], batch["whole"]
        self.draw_noise("prediction", name)
        colour = F.interpolate(self(batch["image"]), whole.shape[-2:], mode="bilinear", align_corners=False)
        return [{"name": name, "coloured": Image.fromarray(as_picture(coloured(whole, colour)[0]))}]

    def figures(self, stage: str) -> dict[str, Figure]:
        """The first evaluated images: grey, as predicted, true; validation adds a row to those of earlier epochs."""
        if not self.shown:
            return {}
        truth, predicted = (torch.stack(pictures) for pictures in zip(*self.shown, strict=True))
        rows = {"predicted": predicted}
        if stage == "val":
            self.course[self.current_epoch + 1] = predicted
            rows = {f"epoch {epoch}": pictures for epoch, pictures in sorted(self.course.items())}
        grey = coloured(truth, torch.zeros(len(truth), 2, *truth.shape[-2:]))
        rows = {"grey": grey, **rows, "true": truth}
        return {"colours": image_rows([[(as_picture(p), name) for p in row] for name, row in rows.items()], side=1.3)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The pictures of earlier epochs go on with the run."""
        checkpoint["course"] = self.course

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them up again."""
        self.course = dict(checkpoint["course"])


def adversarial_loss(logits: Tensor, real: bool) -> Tensor:
    """Binary cross-entropy of all patches with one answer, in float32."""
    return F.binary_cross_entropy_with_logits(logits.float(), torch.full_like(logits, float(real), dtype=torch.float32))


def coloured(pixels: Tensor, colour: Tensor) -> Tensor:
    """Pictures with the lightness of uint8 pixels (B, 3, H, W) and other colours (B, 2, H, W): uint8 of that shape."""
    return (255 * join(lightness(pixels), colour)).round().to(torch.uint8)


def as_picture(pixels: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) to (H, W, 3)."""
    return pixels.permute(1, 2, 0).cpu().numpy()
