"""The colouriser's training step and its colour space against what a user would otherwise write: ratios of time.

The step: two optimisers by turns under Lightning, logging and colour conversion included, against a plain torch loop
that does the same and is handed ready Lab tensors. The colour space: a batch of uint8 pixels to Lab as one tensor
operation, against scikit-image on one photograph after the other.

Run: python -m benchmarks.colorization
"""

import logging
import time
import warnings
from collections.abc import Callable

import numpy as np
import pytorch_lightning as pl
import torch
from skimage.color import rgb2lab
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from components.colour import split
from lightning_modules.gan_colorization import GanColorizationModule, Generator, PatchDiscriminator

SIDE, BATCH, WIDTH, DEPTH = 64, 8, 16, 6
STEPS = 8
REPEATS = 3


class Pixels(Dataset):
    """Random photographs in memory: what is measured is the step, not the disk."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (BATCH * STEPS, 3, SIDE, SIDE)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        return {"image": self.images[index], "index": index}


def networks() -> tuple[Generator, PatchDiscriminator]:
    """The same weights for both ways."""
    torch.manual_seed(0)
    return Generator(WIDTH, DEPTH, 0.0, False, "batch"), PatchDiscriminator(WIDTH, "patch70")


def adam(parameters: object) -> torch.optim.Optimizer:
    """The public code's optimiser."""
    return torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999))


def module_steps(data: Pixels) -> float:
    """Seconds of an epoch of the module in a trainer, from its first batch to its last."""
    generator, discriminator = networks()
    module = GanColorizationModule(generator, discriminator, adam, adam, True, 100.0, 1.5, True, "batch", 0)
    times: list[float] = []

    class Clock(pl.Callback):
        def on_train_batch_start(self, *_: object) -> None:
            times.append(time.perf_counter())

        def on_train_batch_end(self, *_: object) -> None:
            times.append(time.perf_counter())

    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Clock()],
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, BATCH))
    return times[-1] - times[0]


def plain_steps(data: Pixels) -> float:
    """Seconds of the loop that the papers' repositories have."""
    g, d = networks()
    optimizer_g, optimizer_d = adam(g.parameters()), adam(d.parameters())
    ready = [split(batch["image"]) for batch in DataLoader(data, BATCH)]
    started = time.perf_counter()
    for x, y in ready:
        fake = g(x)
        real, judged = d(x, y), d(x, fake.detach())
        loss_d = 0.5 * (
            F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
            + F.binary_cross_entropy_with_logits(judged, torch.zeros_like(judged))
        )
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()
        d.requires_grad_(False)
        answer = d(x, fake)
        loss_g = F.binary_cross_entropy_with_logits(answer, torch.ones_like(answer)) + 100 * F.l1_loss(fake, y)
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        d.requires_grad_(True)
    return time.perf_counter() - started


def one_after_the_other(images: Tensor) -> Tensor:
    """Lab as the public code has it: scikit-image, photograph by photograph."""
    labs = [rgb2lab(image) for image in images.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(labs)).permute(0, 3, 1, 2).float()


def seconds(way: Callable[[Tensor], object], images: Tensor) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    way(images)
    return time.perf_counter() - started


def main() -> None:
    """Prints both ratios; each way is run by turns and its least time taken."""
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    data = Pixels()
    runs = [(module_steps(data), plain_steps(data)) for _ in range(REPEATS)]
    ours, plain = (min(times) / STEPS for times in zip(*runs, strict=True))
    print(
        f"training step, batch {BATCH} of {SIDE} x {SIDE}, width {WIDTH}: {1000 * ours:.1f} ms; plain loop without "
        f"colour conversion and logging: {1000 * plain:.1f} ms; ratio {plain / ours:.2f}"
    )
    images = data.images[:32]
    x, y = split(images)
    difference = float((torch.cat([(x + 1) * 50, y * 128], 1) - one_after_the_other(images)).abs().max())
    turns = [(seconds(split, images), seconds(one_after_the_other, images)) for _ in range(2 * REPEATS)]
    tensor, single = (min(times) for times in zip(*turns, strict=True))
    print(
        f"RGB to Lab, {len(images)} photographs of {SIDE} x {SIDE}: {1000 * tensor:.1f} ms; scikit-image one by one: "
        f"{1000 * single:.1f} ms; ratio {single / tensor:.2f}; largest difference {difference:.1e} of Lab"
    )


if __name__ == "__main__":
    main()
