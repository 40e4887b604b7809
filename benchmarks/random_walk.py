"""The random walk by sparse steps against the square of the dense matrix, the usual way: time and memory.

Run: python -m benchmarks.random_walk
"""

import resource
import time

import torch
from torch import Tensor

from components.random_walk import Offset, pair_offsets, pairs_inside, random_walk

RADIUS, BETA, LOG2_STEPS = 5, 8, 8  # AffinityNet's
CLASSES = 3
SIDES = (32, 48, 64)  # affinity maps of 256, 384 and 512 pixels at stride 8


def dense_walk(scores: Tensor, affinity: Tensor, offsets: list[Offset], beta: float, log2_steps: int) -> Tensor:
    """Writes W out as an N x N matrix and squares T."""
    height, width = affinity.shape[-2:]
    here = torch.arange(height * width).view(height, width)
    whole = torch.eye(height * width)
    inside = pairs_inside(offsets, height, width, affinity.device)
    for place, (dy, dx) in enumerate(offsets):
        i, j = here[inside[place]], here.roll((-dy, -dx), (0, 1))[inside[place]]
        whole[i, j] = whole[j, i] = affinity[place][inside[place]]
    transition = whole.pow(beta)
    transition /= transition.sum(dim=1, keepdim=True)
    for _ in range(log2_steps):
        transition = transition @ transition
    return (scores.flatten(1) @ transition.T).view_as(scores)


def main() -> None:
    """Prints both times, their ratio, the largest difference, and the size of the matrices."""
    torch.set_num_threads(1)
    offsets = pair_offsets(RADIUS)
    for side in SIDES:
        generator = torch.Generator().manual_seed(side)
        affinity = torch.rand(len(offsets), side, side, generator=generator)
        scores = torch.rand(CLASSES, side, side, generator=generator)
        started = time.perf_counter()
        sparse = random_walk(scores, affinity, offsets, BETA, LOG2_STEPS)
        middle = time.perf_counter()
        dense = dense_walk(scores, affinity, offsets, BETA, LOG2_STEPS)
        ours, theirs = middle - started, time.perf_counter() - middle
        entries = side * side * (2 * len(offsets) + 1)
        print(
            f"{side} x {side}: sparse {ours:.3f} s, {entries * 8 / 2**20:.1f} MiB; dense {theirs:.3f} s, "
            f"{side**4 * 4 / 2**20:.0f} MiB a matrix; ratio {theirs / ours:.0f}; difference "
            f"{float((sparse - dense).abs().max()):.1e}"
        )
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")


if __name__ == "__main__":
    main()
