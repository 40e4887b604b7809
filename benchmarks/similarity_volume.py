"""Both similarity volumes of SAda-Net against the authors' way: time, and whether the disparities agree.

The authors concatenate the left features with the moved right ones and run the whole network for each
disparity, once for the left view and once more for the right one. Here the first layer, which is linear
in its two halves, runs once for each image, and one pass serves both views.

Run: python -m benchmarks.similarity_volume
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_modules.sada_net.cost_volume import seen_from_right, similarity_volume
from lightning_modules.sada_net.network import SimilarityNet

FEATURES, CHANNELS = 60, 80  # the paper's network
HEIGHT, WIDTH, CANDIDATES = 80, 120, 16
SIGN = -1
REPEATS = 5

Volumes = tuple[Tensor, Tensor]


def ours(net: SimilarityNet, left: Tensor, right: Tensor, disparities: Tensor) -> Volumes:
    """One pass for both views."""
    volume = similarity_volume(net, left, right, disparities, SIGN, megabytes=256)
    return volume, seen_from_right(volume, disparities, SIGN)


def pass_for_each_disparity(net: SimilarityNet, left: Tensor, right: Tensor, disparities: Tensor) -> Volumes:
    """The authors' way: the whole network for each disparity, for each view."""
    volumes = []
    for reference, other, sign in ((left, right, SIGN), (right, left, -SIGN)):
        slices = []
        for d in disparities.tolist():
            moved = torch.zeros_like(other)
            columns = torch.arange(WIDTH) + sign * d
            inside = (columns >= 0) & (columns < WIDTH)
            moved[:, :, inside] = other[:, :, columns[inside]]
            pair = (reference, moved) if sign == SIGN else (moved, reference)
            slices.append(net(pair[0][None], pair[1][None])[0])
        volumes.append(torch.stack(slices))
    return volumes[0], volumes[1]


def seconds(way: Callable[..., Volumes], *arguments: object) -> tuple[float, Volumes]:
    """Least time of a few runs, and what it gave."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        volumes = way(*arguments)
        times.append(time.perf_counter() - started)
    return min(times), volumes


@torch.no_grad()
def main() -> None:
    """Prints the ratio of the times and the largest difference away from the border."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = SimilarityNet(FEATURES, CHANNELS)
    left, right = torch.randn(2, FEATURES, HEIGHT, WIDTH)
    disparities = torch.arange(CANDIDATES)
    time_ours, volumes_ours = seconds(ours, net, left, right, disparities)
    time_theirs, volumes_theirs = seconds(pass_for_each_disparity, net, left, right, disparities)
    margin = net.radius + CANDIDATES
    inner = (slice(None), slice(net.radius, -net.radius), slice(margin, -margin))
    difference = max(
        float((a[inner] - b[inner]).abs().max()) for a, b in zip(volumes_ours, volumes_theirs, strict=True)
    )
    print(
        f"similarity volumes of both views, {WIDTH}x{HEIGHT}, {CANDIDATES} disparities: {time_ours:.2f} s; "
        f"a pass for each disparity and view: {time_theirs:.2f} s; ratio {time_theirs / time_ours:.2f}; "
        f"largest difference away from the border {difference:.1e}"
    )


if __name__ == "__main__":
    main()
