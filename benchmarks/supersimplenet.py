"""Throughput of the whole of SuperSimpleNet against a plain pass of its backbone: what its heads and its map cost.

Nobody can be faster than the features that all such methods need; the ratio is the share of that speed that is left.
Beside it stands the ratio of their floating-point operations, which a network without any other cost would reach.
Weights are random: they do not change the time.

Run: python -m benchmarks.supersimplenet
"""

import time

import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from runs.composition import compose_config, to_plain

SIDE = 256  # pixels, as MVTec AD and VisA
BATCHES = (1, 4)
REPEATS = 5


def operations(network: nn.Module, given: Tensor) -> float:
    """Floating-point operations of a pass, in units of 10^9."""
    with FlopCounterMode(display=False) as counter:
        network(given)
    return counter.get_total_flops() / 1e9


@torch.inference_mode()
def main() -> None:
    """Prints both rates and their ratio for each batch size."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = compose_config(["experiment=supersimplenet_mvtec", "data.root=unused", "paths.run_dir=unused"])
    whole = instantiate(to_plain(config)["model"], _convert_="all").detector().eval()
    backbone = whole.network.extractor.body
    for batch in BATCHES:
        image = torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8)
        normalised = whole.normalise(image)
        times: dict[str, list[float]] = {"whole": [], "backbone": []}
        for _ in range(1 + REPEATS):  # the first warms up; both ways take turns, so that a busy machine slows both
            for name, network, given in (("whole", whole, image), ("backbone", backbone, normalised)):
                started = time.perf_counter()
                network(given)
                times[name].append(time.perf_counter() - started)
        of_whole, of_backbone = (min(times[name][1:]) for name in ("whole", "backbone"))
        work, least = operations(whole, image), operations(backbone, normalised)
        print(
            f"batch {batch}, {SIDE} x {SIDE}: whole model {batch / of_whole:.2f} images/s, its backbone alone "
            f"{batch / of_backbone:.2f}; ratio {of_backbone / of_whole:.2f}; {work:.1f} and {least:.1f} GFLOP, ratio "
            f"{least / work:.2f}"
        )


if __name__ == "__main__":
    main()
