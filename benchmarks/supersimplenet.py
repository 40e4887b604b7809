"""Throughput of the whole of SuperSimpleNet against a plain pass of its backbone: what its heads and its map cost.

Three ways to compare: with timm's whole network, as a user would call it; with the part of it whose maps are used, up
to layer3; and with this network in the authors' order of operations (`network.py`) instead of the folded one
(`inference.py`). Beside the times stand the floating-point operations. Weights are random: they do not change the time.
What is measured is processor time of one thread, which other programs on the machine disturb less than the clock.

Run: python -m benchmarks.supersimplenet
"""

import time
from collections.abc import Callable

import timm
import torch
from hydra.utils import instantiate
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.supersimplenet.inference import FoldedSuperSimpleNet
from lightning_modules.supersimplenet.network import Detector
from runs.composition import compose_config, to_plain

SIDE = 256  # pixels, as MVTec AD and VisA
BATCHES = (1, 4)
REPEATS = 8


def operations(run: Callable[[], object]) -> float:
    """Floating-point operations, in units of 10^9; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


@torch.inference_mode()
def main() -> None:
    """Prints the rates and their ratios for each batch size."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = compose_config(["experiment=supersimplenet_mvtec", "data.root=unused", "paths.run_dir=unused"])
    module = instantiate(to_plain(config)["model"], _convert_="all").eval()
    whole = module.detector(FoldedSuperSimpleNet(module.network)).eval()
    plain = Detector(module.normalise, module.network, module.smoother, map_max_score=False).eval()
    backbone = timm.create_model(module.network.extractor.backbone.partition(".")[0]).eval()
    part = module.network.extractor.body
    for batch in BATCHES:
        image = torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8)
        normalised = module.normalise(image)
        ways: dict[str, Callable[[], object]] = {
            "whole model": lambda image=image: whole(image),
            "the backbone": lambda image=normalised: backbone(image),
            "the backbone up to layer3": lambda image=normalised: part(image),
            "the authors' order": lambda image=image: plain(image),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(1 + REPEATS):  # the first warms up; all take turns, so that a busy machine slows all
            for name, run in ways.items():
                started = time.process_time()
                run()
                times[name].append(time.process_time() - started)
        of_whole = min(times["whole model"][1:])
        print(f"batch {batch}, {SIDE} x {SIDE}")
        for name, run in ways.items():
            best = min(times[name][1:])
            print(
                f"  {name}: {batch / best:.2f} images/s, {operations(run) / batch:.1f} GFLOP an image; "
                f"whole model / this: {best / of_whole:.2f}"
            )


if __name__ == "__main__":
    main()
