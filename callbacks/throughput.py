"""Time of one image and images a second, as the paper measures them, after the test."""

import copy
import time
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn


@runtime_checkable
class HasInferenceNetwork(Protocol):
    """A module whose inference is one network."""

    def export_model(self) -> tuple[nn.Module, tuple[Tensor, ...], list[str], list[str], dict[str, str]]:
        """The network, example inputs, and more that is not used here."""
        ...


class ThroughputMeter(pl.Callback):
    """Logs ``speed/ms`` of a batch of ``latency_batch`` and ``speed/images_per_second`` of ``throughput_batch``.

    Copies to the device and back are inside the timer. On a GPU the network is in half precision, on a CPU as it is.

    Args:
        cycles: how often all is measured; the first cycle is dropped where there are more. 0 measures nothing.
        warm_up: runs before each timing.
        runs: timed runs.
        latency_batch: images of a batch whose time is taken.
        throughput_batch: images of a batch whose rate is taken.
        size: height and width in pixels.
    """

    def __init__(
        self, cycles: int, warm_up: int, runs: int, latency_batch: int, throughput_batch: int, size: list[int]
    ) -> None:
        self.cycles, self.warm_up, self.runs = cycles, warm_up, runs
        self.latency_batch, self.throughput_batch, self.size = latency_batch, throughput_batch, size

    @torch.inference_mode()
    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.cycles < 1 or not isinstance(module, HasInferenceNetwork):
            return
        network = copy.deepcopy(module.export_model()[0]).to(module.device).eval()
        if module.device.type == "cuda":
            network = InHalfPrecision(network.half())
        seconds = [
            [self.seconds(network, batch, module.device) for batch in (self.latency_batch, self.throughput_batch)]
            for _ in range(self.cycles)
        ]
        of_one, of_many = torch.tensor(seconds[1:] or seconds).mean(dim=0).tolist()
        measured = {"speed/ms": 1000 * of_one, "speed/images_per_second": self.throughput_batch / of_many}
        module.log_dict(measured)

    def seconds(self, network: nn.Module, batch: int, device: torch.device) -> float:
        """Mean time of a run."""
        image = torch.randint(0, 256, (batch, 3, *self.size), dtype=torch.uint8)
        started = 0.0
        for run in range(self.warm_up + self.runs):
            if run == self.warm_up:
                started = time.perf_counter()
            _on_cpu(network(image.to(device)))  # the copy back waits for the device
        return (time.perf_counter() - started) / self.runs


class InHalfPrecision(nn.Module):
    """A network in half precision whose first layer gets its pixels so too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Any:
        with torch.autocast(image.device.type, torch.float16):
            return self.network(image)


def _on_cpu(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [output.cpu() for output in outputs]
