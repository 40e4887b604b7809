"""The dense CRF against pydensecrf2 (the C++ code that users compile), on the same image and seeds.

Run: python -m benchmarks.dense_crf [image file, ...]
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from components.dense_crf import CRFSettings, DenseCRF, label_unary

# The settings of ISIM (arXiv 2211.12455): conf/model/isim.yaml has them with their sources.
SETTINGS = CRFSettings(
    spatial_sigma=3,
    spatial_weight=3,
    bilateral_sigma_xy=50,
    bilateral_sigma_rgb=5,
    bilateral_weight=10,
    steps=10,
    confidence=0.7,
)
LABELS = (2, 4, 21)
REPEATS = 5


def ellipses(height: int, width: int, n: int) -> NDArray[np.int64]:
    """Seeds like thresholded activation maps: n - 1 smooth blobs on background 0."""
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.int64)
    for label in range(1, n):
        angle = 2 * np.pi * label / n
        centre_y, centre_x = height * (0.5 + 0.3 * np.sin(angle)), width * (0.5 + 0.3 * np.cos(angle))
        radius = min(height, width) / (2 + 0.6 * n)
        labels[(y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2] = label
    return labels


def ours(image: NDArray[np.uint8], labels: NDArray[np.int64], n: int, device: str) -> NDArray[np.int64]:
    """Lattices and ten steps, there and back."""
    crf = DenseCRF(torch.from_numpy(image).to(device), SETTINGS)
    return crf(label_unary(torch.from_numpy(labels).to(device), n, SETTINGS.confidence)).argmax(0).cpu().numpy()


def pydensecrf(image: NDArray[np.uint8], labels: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The same with pydensecrf2."""
    import pydensecrf.densecrf as densecrf
    from pydensecrf.utils import unary_from_labels

    height, width = labels.shape
    crf = densecrf.DenseCRF2D(width, height, n)
    crf.setUnaryEnergy(unary_from_labels(labels, n, gt_prob=SETTINGS.confidence, zero_unsure=False))
    crf.addPairwiseGaussian(sxy=SETTINGS.spatial_sigma, compat=SETTINGS.spatial_weight)
    crf.addPairwiseBilateral(
        sxy=SETTINGS.bilateral_sigma_xy,
        srgb=SETTINGS.bilateral_sigma_rgb,
        rgbim=image,
        compat=SETTINGS.bilateral_weight,
    )
    return np.argmax(crf.inference(SETTINGS.steps), axis=0).reshape(height, width)


def timed(run: Callable[[], NDArray[np.int64]]) -> tuple[float, NDArray[np.int64]]:
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def main() -> None:
    """Prints times, the ratio and the share of equal labels, for each image and number of labels."""
    torch.set_num_threads(1)  # as pydensecrf2, and as each process of a pool
    images = {"astronaut": data.astronaut()}
    images |= {name: np.array(Image.open(name).convert("RGB")) for name in sys.argv[1:]}
    rival = importlib.util.find_spec("pydensecrf") is not None
    if not rival:
        print("pydensecrf2 is not installed: no comparison with it")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for name, image in images.items():
        for n in LABELS:
            labels = ellipses(*image.shape[:2], n)
            times: dict[str, list[float]] = {}
            found: dict[str, NDArray[np.int64]] = {}
            for _ in range(REPEATS + 1):  # the first one warms up, and fills the cache of the spatial lattice
                for device in devices:
                    seconds, found[device] = timed(lambda: ours(image, labels, n, device))  # noqa: B023
                    times.setdefault(device, []).append(seconds)
                if rival:
                    seconds, found["pydensecrf2"] = timed(lambda: pydensecrf(image, labels, n))  # noqa: B023
                    times.setdefault("pydensecrf2", []).append(seconds)
            median = {who: statistics.median(values[1:]) for who, values in times.items()}
            size = f"{image.shape[1]} x {image.shape[0]}, {n} labels"
            for device in devices:
                line = f"{name}, {size}, {device}: {median[device]:.3f} s"
                if rival:
                    same = 100 * (found[device] == found["pydensecrf2"]).mean()
                    theirs = median["pydensecrf2"]
                    line += f"; pydensecrf2: {theirs:.3f} s; ratio {theirs / median[device]:.2f}; equal {same:.2f} %"
                print(line)


if __name__ == "__main__":
    main()
