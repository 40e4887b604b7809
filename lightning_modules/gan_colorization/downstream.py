"""What the two downstream tasks share (Section 3.4): where their weights come from, what is frozen, which optimiser.

An arm is one or two stages. Phase 1 trains the new layers alone; phase 2 is a stage of its own, which starts from the
checkpoint of the first with all weights free and a new optimiser at a lower rate.
"""

import logging
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from components.colour import lightness
from components.initial_weights import StartsFromInitialWeights
from components.weights import WeightsError, fit_state, read_state
from runs.errors import InputError

SHOWN_IMAGES = 6  # in the figure of an evaluation
COLOURISER, DOWNSTREAM = "generator.", "network."  # of the weights' names in the checkpoints of the stages

Batch = dict[str, Any]

_log = logging.getLogger("reprise")  # what is said there reaches the terminal


class DownstreamModule(StartsFromInitialWeights, pl.LightningModule):
    """Base of the classifier and the segmenter: input is the lightness alone, weights may come from a colouriser.

    Args:
        network: lightness (B, 1, S, S) of -1..1 to logits; its layers have the names of the colouriser's.
        optimizer: called with the parameters that are not frozen.
        init: ``scratch``: random weights; ``transfer``: those of ``init_from``.
        init_from: checkpoint of a colouriser, whose layers are taken but for its last ones; or of an earlier stage of
            the same task, which is taken whole; or a file of weights under the names of the network's layers.
        freeze: keep the transferred layers as they are. Their BatchNorms use the statistics of the batch all the
            same, and go on counting those of the run.

    Raises:
        InputError: ``scratch`` beside ``init_from``.
    """

    NEW: ClassVar[tuple[str, ...]]  # layers that no colouriser has
    LEFT_BEHIND: ClassVar[tuple[str, ...]]  # layers of a colouriser that the task does not take

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer],
        init: Literal["scratch", "transfer"],
        init_from: str | None,
        freeze: bool,
    ) -> None:
        super().__init__()
        if init == "scratch" and init_from is not None:
            raise InputError(f"model.init=scratch takes no weights, but model.init_from={init_from}: set one of them")
        self.network, self.make_optimizer = network, optimizer
        self.init, self.init_from = init, init_from
        if freeze:
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(name.startswith(self.NEW))

    def forward(self, image: Tensor) -> Tensor:
        """uint8 RGB (B, 3, S, S) to logits; nothing but the lightness is seen."""
        return self.network(lightness(image))

    # ---- where the weights come from ---------------------------------------------------------------

    def load_initial_weights(self) -> None:
        """Fills the network, and says in one line with what.

        Raises:
            InputError: no weights are named, they cannot be read, or their names or shapes do not fit.
        """
        if self.init == "scratch":
            _log.info("all weights of the network are random (model.init=scratch)")
            return
        if self.init_from is None:
            raise InputError(
                "model.init=transfer needs weights: name the colouriser's checkpoint by "
                "stages.<stage>.model.init_from=<checkpoint> (experiment=gan_colorization_voc: "
                "pretext=<checkpoint>), or take variant=gan_colorization_scratch to begin with random ones"
            )
        own: dict[str, Tensor] = {}
        colouriser: dict[str, Tensor] = {}
        try:
            state = read_state(self.init_from)
            own, colouriser = (_part(state, prefix) for prefix in (DOWNSTREAM, COLOURISER))
            new, free = ((), ()) if own else (self.NEW, (*self.NEW, *self.LEFT_BEHIND))
            # Strict both ways: each of the network's other layers gets its weights, each weight has its place.
            fit_state(self.network, own or colouriser or state, self.init_from, free)
        except WeightsError as error:
            size = "; if it is of another size, set unet.width and unet.depth to the colouriser's" if colouriser else ""
            raise InputError(f"model.init_from: {error}{size}") from error
        loaded = {name: p for name, p in self.network.named_parameters() if not name.startswith(new)}
        layers = dict.fromkeys(name.partition(".")[0] for name in loaded)
        _log.info(
            f"{sum(p.numel() for p in loaded.values()):,} weights of {', '.join(layers)} come from {self.init_from}; "
            f"random: {', '.join(name.rstrip('.') for name in new) or 'none'}"
        )

    def configure_optimizers(self) -> Optimizer:
        """One for the stage, of what is not frozen."""
        return self.make_optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])

    @property
    def class_names(self) -> list[str]:
        """The datamodule's class names."""
        return self.trainer.datamodule.class_names


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
