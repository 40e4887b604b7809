"""One image segmented by DIC against the authors' way of voting: seconds for each inner step, and the same labels.

The public demo walks over the superpixels in Python in every step: of each it takes the labels, their unique
values and how often each occurs. Here the vote is one count over (superpixel, label). Everything else is the
same code, so that the label maps must be equal.

Run: python -m benchmarks.dic
"""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from skimage.data import astronaut
from skimage.segmentation import slic
from skimage.transform import resize
from torch import Tensor

from lightning_modules.dic import DICModule, module
from lightning_modules.dic.losses import superpixel_vote
from lightning_modules.dic.network import DeepClustering, FeatureTransform

CASES = [(112, 168, 0.5, 150, 10), (321, 481, 0.25, 1000, 2)]  # rows, columns, width, superpixels, inner steps
C, M = 50, 32
REPEATS = 2


class LoopVote:
    """The authors' way: a loop over superpixels, and in each a loop over its labels.

    Which pixels a superpixel has is found once for an image, as in the demo.
    """

    def __init__(self, guide: Tensor) -> None:
        regions = guide.flatten().numpy()
        self.pixels = [np.where(regions == k)[0] for k in range(regions.max() + 1)]

    def __call__(self, labels: Tensor, guide: Tensor, superpixels: int, channels: int) -> Tensor:
        voted = labels.numpy().copy()
        for inside in self.pixels:
            own = voted[inside]
            kinds = np.unique(own)
            counts = np.zeros(len(kinds))
            for place in range(len(kinds)):
                counts[place] = len(np.where(own == kinds[place])[0])
            voted[inside] = kinds[np.argmax(counts)]
        return torch.from_numpy(voted)


def picture(rows: int, columns: int, superpixels: int) -> dict:
    """A photograph of that size as a sample."""
    pixels = resize(astronaut(), (rows, columns), anti_aliasing=True)
    guide = np.unique(slic(pixels, superpixels, compactness=10, start_label=0), return_inverse=True)[1]
    return {
        "image": torch.from_numpy((255 * pixels).astype(np.uint8)).permute(2, 0, 1),
        "guide": torch.from_numpy(guide.reshape(rows, columns)).long(),
    }


def seconds(segmenter: DICModule, sample: dict, steps: int) -> tuple[float, Tensor]:
    """Least time of an inner step over a few runs, and the label map."""
    times = []
    for _ in range(REPEATS):
        torch.manual_seed(0)
        started = time.perf_counter()
        labels = segmenter.segment(sample, [C, M]).labels
        times.append((time.perf_counter() - started) / steps)
    return min(times), labels


def vote_seconds(vote: Callable[..., Tensor], sample: dict) -> float:
    """Least time of a vote on labels as a first step has them."""
    labels, guide = torch.randint(0, C, (sample["guide"].numel(),)), sample["guide"].flatten()
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        vote(labels, guide, int(guide.max()) + 1, C)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Prints both ratios for a small and a full-size picture."""
    torch.set_num_threads(1)
    for rows, columns, width, superpixels, steps in CASES:
        segmenter = DICModule(
            fts=partial(FeatureTransform, upsample="bilinear", out_bn=True),
            dcs=partial(DeepClustering, variant="official", gamma=3),
            optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
            width=width, T=steps, min_labels=0, settings=[[C, M]], ois_select="per_metric", seed=0,
        )  # fmt: skip
        sample = picture(rows, columns, superpixels)
        ours, labels = seconds(segmenter, sample, steps)
        loop_vote = LoopVote(sample["guide"])
        module.superpixel_vote = loop_vote
        try:
            theirs, theirs_labels = seconds(segmenter, sample, steps)
        finally:
            module.superpixel_vote = superpixel_vote
        assert torch.equal(labels, theirs_labels), "the two votes gave different label maps"
        vote, loop = vote_seconds(superpixel_vote, sample), vote_seconds(loop_vote, sample)
        print(
            f"{columns}x{rows}, width {width}, C={C}, K={int(sample['guide'].max()) + 1}: inner step {ours:.3f} s "
            f"({100 * ours:.0f} s for T=100), with a loop over superpixels {theirs:.3f} s, ratio {theirs / ours:.2f}; "
            f"the vote alone {1000 * vote:.2f} ms against {1000 * loop:.1f} ms, ratio {loop / vote:.0f}; same labels"
        )


if __name__ == "__main__":
    main()
