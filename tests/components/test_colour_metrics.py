"""Lab against scikit-image, PSNR and SSIM against their equations, and what a grey answer scores."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.color import lab2rgb, rgb2lab

from components.colour import join, lightness, split
from components.metrics.colour import ColourScores
from datamodules.photograph_files import open_photograph


def pictures(count: int, side: int = 32) -> torch.Tensor:
    """Smooth coloured pictures with some noise, uint8 (count, 3, side, side)."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(count, 3, side, side))
    smooth = gaussian_filter(noise, (0, 0, 4, 4)) * 700 + 128 + 10 * noise
    return torch.tensor(np.clip(smooth, 0, 255).astype(np.uint8))


def score(pixels: torch.Tensor, predicted: torch.Tensor) -> dict[str, float]:
    scores = ColourScores(1.5)
    scores.update(pixels, predicted)
    return {name: float(value) for name, value in scores.compute().items()}


def test_lab_is_that_of_scikit_image():
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (100, 3, 16, 16), dtype=np.uint8)
    pixels[0, :, 0, :8] = [[255 * (n >> c & 1) for n in range(8)] for c in range(3)]  # the corners of RGB
    x, y = split(torch.tensor(pixels))
    expected = rgb2lab(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert np.abs((x.numpy() + 1) * 50 - expected[:, :1]).max() < 1e-3
    assert np.abs(y.numpy() * 128 - expected[:, 1:]).max() < 1e-3
    assert torch.equal(lightness(torch.tensor(pixels)), x)
    assert x.min() >= -1 and x.max() <= 1 + 1e-6 and y.abs().max() < 1


def test_there_and_back_loses_less_than_a_grey_level():
    pixels = torch.tensor(np.random.default_rng(2).integers(0, 256, (100, 3, 16, 16), dtype=np.uint8))
    back = join(*split(pixels))
    assert (back - pixels / 255).abs().max() < 1 / 255


def test_colours_outside_rgb_are_clipped():
    x, y = torch.full((1, 1, 4, 4), 0.2), torch.stack([torch.full((4, 4), 0.9), torch.full((4, 4), -0.9)])[None]
    rgb = join(x, y)
    assert rgb.min() == 0 and rgb.max() == 1
    expected = lab2rgb(np.stack([np.full((4, 4), v) for v in (60.0, 115.2, -115.2)], axis=2))
    np.testing.assert_allclose(rgb[0].permute(1, 2, 0), expected, atol=1e-4)


def test_half_precision_around_does_not_reach_colour_or_scores():
    pixels = pictures(2)
    with torch.autocast("cpu", torch.bfloat16):
        x, y = split(pixels)
        inside = score(pixels, torch.zeros_like(y))
        back = join(x, y)
    assert torch.equal(y, split(pixels)[1]) and y.dtype == torch.float32
    assert torch.equal(back, join(x, y))
    assert inside == score(pixels, torch.zeros_like(y))


def ssim_of(first: np.ndarray, second: np.ndarray) -> float:
    """Eq. 9 with an 11 x 11 Gaussian of sigma 1.5, mean over pixels and channels (H, W, 3)."""
    values = []
    for x, y in zip(first.transpose(2, 0, 1), second.transpose(2, 0, 1), strict=True):

        def blur(z):
            return gaussian_filter(z, 1.5, mode="mirror", radius=5)

        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        values.append(
            ((2 * mx * my + 0.01**2) * (2 * cov + 0.03**2) / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2))).mean()
        )
    return float(np.mean(values))


def test_scores_are_those_of_the_equations_image_by_image():
    pixels = pictures(5)
    _, y = split(pixels)
    predicted = (y * torch.linspace(-0.5, 1.4, 5).view(-1, 1, 1, 1) + 0.02).clamp(-1, 1)
    scores = ColourScores(1.5)
    scores.update(pixels[:2], predicted[:2])
    scores.update(pixels[2:], predicted[2:])
    found = {name: float(value) for name, value in scores.compute().items()}
    for prefix, colour in (("", predicted), ("floor_", torch.zeros_like(y))):
        psnr, ssim, errors = [], [], []
        for image, answer in zip(pixels.numpy(), colour.numpy(), strict=True):
            truth = image.transpose(1, 2, 0) / 255
            lab = rgb2lab(truth)
            errors.append(np.abs(lab[..., 1:] - 128 * answer.transpose(1, 2, 0)).mean())
            lab[..., 1:] = 128 * answer.transpose(1, 2, 0)
            given = np.clip(lab2rgb(lab), 0, 1)
            psnr.append(10 * np.log10(1 / ((truth - given) ** 2).mean()))  # Eqs. 4 and 5, with the square
            ssim.append(ssim_of(given, truth))
        for name, values in (("psnr", psnr), ("ssim", ssim)):
            assert found[f"{prefix}{name}"] == pytest.approx(np.mean(values), rel=1e-3)
            assert found[f"{prefix}{name}_min"] == pytest.approx(min(values), rel=1e-3)
            assert found[f"{prefix}{name}_max"] == pytest.approx(max(values), rel=1e-3)
        assert found[f"{prefix}ab_error"] == pytest.approx(np.mean(errors), rel=1e-4)
    lab = rgb2lab(pixels.numpy().transpose(0, 2, 3, 1))
    true_chroma = np.hypot(lab[..., 1], lab[..., 2]).mean()
    chroma = 128 * np.hypot(*predicted.numpy().transpose(1, 0, 2, 3)).mean()
    assert found["chroma_ratio"] == pytest.approx(chroma / true_chroma, rel=1e-4)


def test_the_mean_psnr_is_not_that_of_the_pooled_error():
    pixels = pictures(2)
    pixels[1] = pixels[1] // 4 + 96  # hardly any colour: another error
    truth, given = pixels / 255, join(lightness(pixels), torch.zeros(2, 2, 32, 32))
    pooled = float(10 * torch.log10(1 / ((truth - given) ** 2).mean()))
    assert score(pixels, torch.zeros(2, 2, 32, 32))["psnr"] > pooled + 1


def test_an_answer_without_colour_scores_the_floor_and_no_chroma():
    """Trap 1: by PSNR and SSIM alone it passes for a good colouriser."""
    pixels = pictures(4)
    found = score(pixels, torch.zeros(4, 2, 32, 32))
    for name in ("psnr", "psnr_min", "psnr_max", "ssim", "ssim_min", "ssim_max", "ab_error"):
        assert found[name] == found[f"floor_{name}"]
    assert found["chroma_ratio"] == 0
    true = score(pixels, split(pixels)[1])
    assert true["chroma_ratio"] == pytest.approx(1) and true["ab_error"] == 0 and true["psnr"] > 60


def test_grey_photographs_are_left_out_and_counted():
    pixels = pictures(3)
    grey = pixels[:1, :1].expand(1, 3, -1, -1)
    predicted = 0.1 * torch.ones(4, 2, 32, 32)
    both = score(torch.cat([pixels, grey]), predicted)
    alone = score(pixels, predicted[:3])
    assert (both.pop("grey_images"), alone.pop("grey_images")) == (1, 0)
    assert both == alone and both["images"] == 3
    assert np.isnan(score(grey, predicted[:1])["psnr"])


def test_what_two_processes_saw_makes_one_score():
    pixels, predicted = pictures(5), 0.1 * torch.ones(5, 2, 32, 32)
    first, second = ColourScores(1.5), ColourScores(1.5)
    first.update(pixels[::2], predicted[::2])
    second.update(pixels[1::2], predicted[1::2])
    first.merge_state(second)
    merged, whole = first.compute(), score(pixels, predicted)
    assert {name: float(value) for name, value in merged.items()} == pytest.approx(whole, rel=1e-6)


def test_no_colour_at_all_scores_better_on_real_photographs_than_the_paper_reports(sample_data):
    """Spec 10: 124 colour photographs at 256 x 256 by nearest neighbour; the paper's Table 3 has 20.94 and 0.85."""
    scores = ColourScores(1.5)
    files = sorted((sample_data / "coco128_voc" / "VOCdevkit" / "VOC2012" / "JPEGImages").glob("*.jpg"))
    assert len(files) == 128
    for path in files:
        picture = open_photograph(path).resize((256, 256), Image.Resampling.NEAREST)
        pixels = torch.tensor(np.asarray(picture).transpose(2, 0, 1)[None])
        scores.update(pixels, torch.zeros(1, 2, 256, 256))
    found = {name: float(value) for name, value in scores.compute().items()}
    assert (found["images"], found["grey_images"]) == (124, 4)
    assert found["floor_psnr"] == pytest.approx(22.82, abs=0.1)
    assert found["floor_ssim"] == pytest.approx(0.93, abs=0.01)
    assert found["floor_ab_error"] * 124 / 128 / 128 == pytest.approx(0.080, abs=1e-3)  # grey ones add nothing
