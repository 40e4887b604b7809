"""Scores of predicted colours, each beside what no colour at all scores on the same images.

PSNR and SSIM compare RGB pictures whose lightness was given: a grey answer already scores high in both. They say
something about colour only beside the error in Lab, the chroma ratio and the floor.
"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from components.colour import AB_UNIT, join, split

PICTURE_SCORES = ("psnr", "ssim")
GREY_CHROMA = 1.0  # mean chroma in Lab below which a photograph is grey: there is no colour to predict


class ColourScores(Metric):
    """PSNR and SSIM of each image, error and amount of colour; grey photographs are left out and counted.

    ``update`` takes the true pixels and the predicted colour; ``compute`` returns, as scalars:

    - ``psnr`` in dB and ``ssim``: mean over images, with ``_min`` and ``_max``;
    - ``ab_error``: mean of |a - a'| and |b - b'| in units of Lab;
    - ``chroma_ratio``: mean predicted over mean true chroma, over all images: 0 for grey answers;
    - ``floor_<name>`` of each: the scores of a = b = 0;
    - ``images`` that were scored, ``grey_images`` that were left out.

    Args:
        ssim_sigma: standard deviation of SSIM's Gaussian window, pixels; its side is 7 sigma, 11 pixels for 1.5.
    """

    full_state_update = False
    is_differentiable = False
    sums: Tensor  # psnr, ssim, floor of both, ab error, its floor, chroma, true chroma
    least: Tensor  # psnr, ssim, floor of both
    most: Tensor
    images: Tensor
    grey_images: Tensor

    def __init__(self, ssim_sigma: float) -> None:
        super().__init__()
        self.ssim_sigma = ssim_sigma
        self.add_state("sums", torch.zeros(8, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("least", torch.full((4,), torch.inf), dist_reduce_fx="min")
        self.add_state("most", torch.full((4,), -torch.inf), dist_reduce_fx="max")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("grey_images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, pixels: Tensor, predicted: Tensor) -> None:
        """Scores images.

        Args:
            pixels: the true ones, uint8 (B, 3, H, W).
            predicted: colour (B, 2, H, W), (a, b) / 128.
        """
        # Autocast would do SSIM's convolutions in half precision.
        with torch.autocast(pixels.device.type, enabled=False):
            lightness, colour = split(pixels)
            predicted, nothing = predicted.float(), torch.zeros_like(colour)
            truth = pixels.float() / 255
            compared = [
                score for given in (predicted, nothing) for score in self._compare(join(lightness, given), truth)
            ]
            pictures = torch.stack(compared, dim=1)  # (B, 4)
            errors = [AB_UNIT * (colour - given).abs().flatten(1).mean(dim=1) for given in (predicted, nothing)]
            chroma, true_chroma = (mean_chroma(given) for given in (predicted, colour))
        scored = true_chroma >= GREY_CHROMA
        each = torch.cat([pictures, torch.stack([*errors, chroma, true_chroma], dim=1)], dim=1)  # (B, 8)
        self.sums += torch.where(scored[:, None], each, 0).double().sum(dim=0)
        self.least = torch.minimum(self.least, torch.where(scored[:, None], pictures, torch.inf).amin(dim=0))
        self.most = torch.maximum(self.most, torch.where(scored[:, None], pictures, -torch.inf).amax(dim=0))
        self.images += scored.sum()
        self.grey_images += (~scored).sum()

    def _compare(self, picture: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """PSNR and SSIM of each image, (B,); a mean squared error over a batch would be another number."""
        psnr = peak_signal_noise_ratio(picture, truth, data_range=1.0, reduction="none", dim=(1, 2, 3))
        ssim = structural_similarity_index_measure(
            picture, truth, sigma=self.ssim_sigma, data_range=1.0, k1=0.01, k2=0.03, reduction="none"
        )
        return psnr, ssim

    def compute(self) -> dict[str, Tensor]:
        """The scores; nan where no image had a colour."""
        means = self.sums / self.images
        scores = {}
        for place, prefix in enumerate(("", "floor_")):
            for column, name in enumerate(PICTURE_SCORES, start=2 * place):
                scores[f"{prefix}{name}"] = means[column]
                scores[f"{prefix}{name}_min"] = self.least[column]
                scores[f"{prefix}{name}_max"] = self.most[column]
            scores[f"{prefix}ab_error"] = means[4 + place]
        scores["chroma_ratio"] = means[6] / means[7]
        scores["floor_chroma_ratio"] = torch.zeros_like(means[6])
        return {**scores, "images": self.images, "grey_images": self.grey_images}


def mean_chroma(colour: Tensor) -> Tensor:
    """Mean length of (a, b) over the pixels of each image, in units of Lab: (B,)."""
    return AB_UNIT * colour.norm(dim=1).flatten(1).mean(dim=1)
