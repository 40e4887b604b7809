"""A network of an earlier stage, as rounds of a later one use it."""

import torch
from torch import Tensor, nn

from components.pixels import PixelNormalisation
from components.weights import WeightsError, fit_state, read_state
from runs.errors import InputError

PREFIX = "network."  # of the network's weights in a module's checkpoint


class TrainedNetwork:
    """A network with the weights of a checkpoint, in eval mode.

    The weights are read when they are first needed, not when the run is set up: then the earlier
    stage has not been trained yet.

    Args:
        network: without weights of its own; the module that was trained holds it as ``network``.
        checkpoint: of that module.
        image_mean: mean of each colour channel, of 0..1, in its training.
        image_std: standard deviation of each colour channel, of 0..1.
    """

    def __init__(
        self, network: nn.Module, checkpoint: str | None, image_mean: list[float], image_std: list[float]
    ) -> None:
        self.network, self.checkpoint = network, checkpoint
        self.normalise = PixelNormalisation(image_mean, image_std)

    def load(self, device: torch.device) -> None:
        """Reads the weights and moves everything to a device.

        Raises:
            InputError: there is no checkpoint, or it is that of another network.
        """
        if self.checkpoint is None:
            raise InputError("a round uses the network of an earlier stage: set its checkpoint to <run>/<stage>")
        try:
            state = read_state(self.checkpoint)
            own = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
            fit_state(self.network, own, str(self.checkpoint))
        except WeightsError as error:
            raise InputError(f"the network of an earlier stage cannot be used: {error}") from error
        self.network.to(device).eval()
        self.normalise.to(device)

    def release(self) -> None:
        """Takes the network off the GPU."""
        self.network.cpu()

    def normalised(self, image: Tensor) -> Tensor:
        """uint8 pixels (3, H, W), of any device, as the network was trained to see them."""
        return self.normalise(image.to(self.normalise.mean.device))
