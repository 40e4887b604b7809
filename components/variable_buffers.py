"""Module state whose shape only the run, or its checkpoint, knows: a graph, a list of rounds, a prototype set."""

from typing import Any

import torch
from torch import Tensor, nn


class VariableBuffers(nn.Module):
    """Mixin for modules with buffers that grow: they load from a checkpoint in whatever shape they have there.

    Torch refuses a stored buffer whose shape is not the registered one. The buffers registered here
    start empty, are replaced as a whole by assigning a tensor (``self.labels = labels``), move with
    the module, and are part of its `state_dict`. A checkpoint without them is refused as usual.

        class Module(VariableBuffers, pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.register_variable_buffer("labels", torch.int64)
    """

    def register_variable_buffer(self, name: str, dtype: torch.dtype, axes: int = 1) -> None:
        """Registers an empty buffer; its type and number of axes are fixed, its shape is not."""
        self.register_buffer(name, torch.empty((0,) * axes, dtype=dtype))
        self.__dict__.setdefault("_variable_buffers", set()).add(name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self.__dict__.get("_variable_buffers", ()):
            stored, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(stored, Tensor) and stored.ndim == own.ndim and stored.dtype == own.dtype:
                setattr(self, name, torch.empty(stored.shape, dtype=own.dtype, device=own.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
