"""Strict loading of weights that a user brings: every key accounted for, nothing unpickled."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from runs.errors import first_few


class WeightsError(ValueError):
    """A file holds no weights, or weights that do not fit; the message is one sentence."""


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Reads a state dict: safetensors, or a ``torch.save`` of tensors, bare or in a checkpoint.

    The tensors may lie under ``state_dict`` (Lightning, many repositories) or ``model`` (others).

    Args:
        path: the file.

    Returns:
        Tensors on the CPU, keyed by parameter name.

    Raises:
        WeightsError: if there is no such file, or it holds no state dict that is safe to load.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise WeightsError(
            f"{path} cannot be read as weights: expected a .safetensors file or a checkpoint of "
            "plain tensors (torch.load with weights_only=True)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise WeightsError(f"{path} holds no weights: no tensor under state_dict, model or at its top")
    return state


def fit_state(module: nn.Module, state: dict[str, Tensor], source: str, free: Sequence[str] = ()) -> None:
    """Loads ``state`` into ``module``; every key must match in name and shape.

    Args:
        module: what receives the weights.
        state: parameter name to tensor.
        source: where the weights come from, for the sentence.
        free: name prefixes (a classifier head, say) that are left as they are in ``module`` and
            ignored in ``state``.

    Raises:
        WeightsError: naming the keys that are unexpected, missing or of another shape.
    """
    own = module.state_dict()
    prefixes = tuple(free)
    wanted = {name for name in own if not name.startswith(prefixes)} if prefixes else set(own)
    given = {name for name in state if not name.startswith(prefixes)} if prefixes else set(state)
    shapes = [
        f"{name} {tuple(state[name].shape)} where the network has {tuple(own[name].shape)}"
        for name in sorted(wanted & given)
        if state[name].shape != own[name].shape
    ]
    faults = [
        f"{what} {first_few(names)}"
        for what, names in (
            (f"{len(given - wanted)} unexpected keys:", sorted(given - wanted)),
            (f"{len(wanted - given)} missing keys:", sorted(wanted - given)),
            (f"{len(shapes)} other shapes:", shapes),
        )
        if names
    ]
    if faults:
        raise WeightsError(f"{source} does not fit the network: " + "; ".join(faults))
    module.load_state_dict({name: state[name] for name in given}, strict=False)


def load_state(module: nn.Module, path: str | Path, free: Sequence[str] = ()) -> None:
    """`read_state`, then `fit_state`: the file's weights into ``module``, strictly."""
    fit_state(module, read_state(path), source=str(path), free=free)
