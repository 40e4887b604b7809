"""What the paper compares with: LOF and isolation forest of scikit-learn, an autoencoder, and no denoising at all."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.refitted_estimator import RefittedEstimator
from components.seeding import derived_seed
from lightning_modules.symmetry_outlier.clustering import Clustering
from lightning_modules.symmetry_outlier.denoising import DenoisedClustering
from runs.errors import InputError


class LibraryOutlierModule(DenoisedClustering):
    """A detector of scikit-learn with ``score_samples``, whose negative is the degree, and ``offset_``, its own cut.

    Args:
        make: gives a fresh detector.
        r, threshold, clustering, outlier_classes: see `DenoisedClustering`.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        r: float,
        threshold: Literal["iqr", "native"],
        clustering: Clustering,
        outlier_classes: list[str],
    ) -> None:
        super().__init__(r, threshold, clustering, outlier_classes)
        self.fitted = RefittedEstimator(make)

    def score_step(self) -> Mapping[str, Tensor | float]:
        """Fits at once.

        Raises:
            InputError: the detector cannot be fitted on these rows.
        """
        try:
            self.fitted.fit(self.points, None)
        except ValueError as error:
            raise InputError(f"{len(self.points)} rows cannot be given to the detector: {error}") from error
        found = self.fitted.estimator
        if hasattr(found, "negative_outlier_factor_"):  # of the training rows, each without itself
            scores = found.negative_outlier_factor_
        else:
            scores = found.score_samples(self.points.cpu().numpy())
        degree = -torch.as_tensor(scores, dtype=torch.float64).to(self.points.device)
        self.flag(degree, native=torch.tensor(-float(found.offset_), dtype=torch.float64))
        return {"flagged": float((~self.kept).sum())}

    def is_scored(self) -> bool:
        return len(self.degree) > 0

    def describe(self, x: Tensor, own: Tensor) -> dict[str, Tensor]:
        scores = torch.from_numpy(self.fitted.estimator.score_samples(x.cpu().numpy()))
        return {"outlier_degree": -scores.to(x)}


class AutoEncoderOutlierModule(DenoisedClustering):
    """The mean squared error of rows that a narrow network gives back, trained by gradients; flagged by quartiles.

    The network has d - ceil(d/2) - ceil(d/4) - ceil(d/2) - d units. Its first weights and the order of its
    mini-batches are functions of the seed, the same in all processes.

    Args:
        optimizer: called with the weights.
        epochs: over all training rows.
        epochs_per_step: of training; a checkpoint is written after each step.
        batch_size: rows of a mini-batch.
        seed: of weights and order.
        r, threshold, clustering, outlier_classes: see `DenoisedClustering`; the cut by quartiles is the own one.
    """

    epoch: Tensor

    def __init__(
        self,
        optimizer: Callable[..., torch.optim.Optimizer],
        epochs: int,
        epochs_per_step: int,
        batch_size: int,
        seed: int,
        r: float,
        threshold: Literal["iqr", "native"],
        clustering: Clustering,
        outlier_classes: list[str],
    ) -> None:
        super().__init__(r, threshold, clustering, outlier_classes)
        for name, value in (("epochs", epochs), ("epochs_per_step", epochs_per_step), ("batch_size", batch_size)):
            if value < 1:
                raise InputError(f"model.{name}={value} must be 1 or more")
        self.make_optimizer, self.seed = optimizer, seed
        self.epochs, self.epochs_per_step, self.batch_size = epochs, epochs_per_step, batch_size
        self.network: nn.Sequential | None = None  # how wide it is, only the data know
        self.unused.requires_grad_(False)  # there are other weights
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def setup(self, stage: str) -> None:
        """The network for the columns of the data, before there is an optimiser."""
        if stage == "fit" and self.network is None:
            self.network = autoencoder(len(self.trainer.datamodule.columns), self.seed)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The network for the columns of the checkpoint."""
        if self.network is None:
            width = checkpoint["state_dict"]["network.0.weight"].shape[1]
            self.network = autoencoder(width, self.seed).to(self.device)

    def score_step(self) -> Mapping[str, Tensor | float]:
        """The next epochs; after the last the rows get their degrees."""
        optimizer, n = self.optimizers(), len(self.points)
        for _ in range(min(self.epochs_per_step, self.epochs - int(self.epoch))):
            generator = torch.Generator().manual_seed(derived_seed("autoencoder", self.seed, int(self.epoch)))
            for rows in torch.randperm(n, generator=generator).to(self.points.device).split(self.batch_size):
                x = self.points[rows]
                optimizer.zero_grad()
                self.manual_backward(F.mse_loss(self.network(x), x))
                optimizer.step()
            self.epoch += 1
        optimizer.zero_grad()
        degree = self.error(self.points)
        if self.epoch == self.epochs:
            self.flag(degree, native=None)
        return {"loss": degree.mean()}

    @torch.no_grad()
    def error(self, x: Tensor) -> Tensor:
        """Mean squared error of rows x (B, d), (B,)."""
        return (self.network(x) - x).square().mean(dim=1)

    def is_scored(self) -> bool:
        return len(self.degree) > 0

    def describe(self, x: Tensor, own: Tensor) -> dict[str, Tensor]:
        return {"outlier_degree": self.error(x)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.network.parameters())


def autoencoder(d: int, seed: int) -> nn.Sequential:
    """Layers of d - ceil(d/2) - ceil(d/4) - ceil(d/2) - d units with ReLU between them, float64, drawn by the seed."""
    sizes = [d, -(-d // 2), -(-d // 4), -(-d // 2), d]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("autoencoder weights", seed))
        layers = [nn.Linear(wide, narrow, dtype=torch.float64) for wide, narrow in pairwise(sizes)]
    return nn.Sequential(*[part for layer in layers[:-1] for part in (layer, nn.ReLU())], layers[-1])


class NotDenoisedModule(DenoisedClustering):
    """The paper's "Origin": no row is an outlier, all are clustered."""

    def score_step(self) -> Mapping[str, Tensor | float]:
        self.flag(torch.zeros_like(self.points[:, 0]), native=None)
        return {"flagged": 0.0}

    def is_scored(self) -> bool:
        return len(self.degree) > 0

    def describe(self, x: Tensor, own: Tensor) -> dict[str, Tensor]:
        return {"outlier_degree": torch.zeros_like(x[:, 0])}
