"""When a module fills its network with pre-trained weights."""

from typing import Any, Protocol


class HasInitialWeights(Protocol):
    """A network whose config names the weights it starts from."""

    def load_initial_weights(self) -> None:
        """Fills the network with them.

        Raises:
            InputError: they are missing or do not fit.
        """
        ...


class StartsFromInitialWeights:
    """Mixin, before the module's base class: a fresh fit starts from pre-trained weights.

    Not in the constructor, and not when a fit goes on from its checkpoint: judging or resuming
    a run must need nothing but its checkpoint.

    Attributes:
        network: the one to fill.
        restored: whether this module has taken up a checkpoint of its own.
    """

    network: HasInitialWeights
    restored: bool = False

    def on_fit_start(self) -> None:
        """Loads the weights, unless the fit goes on.

        Raises:
            InputError: they are missing or do not fit.
        """
        super().on_fit_start()
        if not self.restored:
            self.load_initial_weights()

    def load_initial_weights(self) -> None:
        """Fills the network; a module that may start from something else overrides it."""
        self.network.load_initial_weights()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remembers that the weights are there."""
        super().on_load_checkpoint(checkpoint)
        self.restored = True
