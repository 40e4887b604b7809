"""SITAR's contrastive loss (Eq. 2) against the double loop of the equation: forward and backward.

Run: python -m benchmarks.contrastive_loss
"""

import importlib.util
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.sitar.losses import nt_xent

TAU = 0.5
CLASSES = 101  # of UCF101: the length of a softmax vector
LOOP_BATCH = 32  # 8 labelled clips with mu = 4
LARGE_BATCH = 512


def double_loop(u: Tensor, v: Tensor, temperature: float) -> Tensor:
    """Eq. 2 as it is printed: one term for each pair."""
    terms = []
    for here, there in ((u, v), (v, u)):
        for i in range(len(u)):
            positive = torch.exp(F.cosine_similarity(here[i], there[i], dim=0) / temperature)
            total = positive
            for k in range(len(u)):
                if k != i:
                    for other in (here[k], there[k]):
                        total = total + torch.exp(F.cosine_similarity(here[i], other, dim=0) / temperature)
            terms.append(-torch.log(positive / total))
    return torch.stack(terms).mean()


def seconds(loss: Callable[[Tensor, Tensor, float], Tensor], batch: int, repeats: int) -> float:
    """Median time of one forward and backward pass."""
    times = []
    for seed in range(repeats + 1):  # the first one warms up
        torch.manual_seed(seed)
        u, v = (torch.randn(batch, CLASSES).softmax(dim=1).requires_grad_() for _ in range(2))
        started = time.perf_counter()
        loss(u, v, TAU).backward()
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[repeats // 2]


def compare(name: str, other: Callable[[Tensor, Tensor, float], Tensor], batch: int, repeats: int) -> None:
    """Prints how many times faster `nt_xent` is than another way to the same number."""
    ours, theirs = seconds(nt_xent, batch, 50), seconds(other, batch, repeats)
    print(f"nt_xent, B={batch}: {1e3 * ours:.3f} ms; {name}: {1e3 * theirs:.3f} ms; ratio {theirs / ours:.1f}")


def main() -> None:
    """Compares with the double loop, and with lightly's loss where lightly is installed."""
    torch.set_num_threads(1)  # the matrices are too small to share
    compare("double loop", double_loop, LOOP_BATCH, repeats=3)
    if importlib.util.find_spec("lightly") is None:
        print("lightly is not installed: no comparison with its NTXentLoss")
        return
    from lightly.loss import NTXentLoss

    compare("lightly", lambda u, v, tau: NTXentLoss(tau)(u, v), LARGE_BATCH, repeats=50)


if __name__ == "__main__":
    main()
