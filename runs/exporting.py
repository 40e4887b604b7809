"""Writes a checkpoint's network as ONNX, and lets onnxruntime answer for the file."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from runs.atomic_files import write_atomically
from runs.checkpoints import read_checkpoint
from runs.errors import InputError
from runs.run_log import say

TOLERANCE = 1e-4  # largest difference to torch, of outputs of the order of 1


@runtime_checkable
class ExportsModel(Protocol):
    """A module whose inference is one network."""

    def export_model(self) -> tuple[nn.Module, tuple[Tensor, ...], list[str], list[str], dict[str, str]]:
        """The network, example inputs of two samples, names of inputs and outputs, notes for the file.

        The first axis of every input and output counts the samples.
        """
        ...


def export_checkpoint(module: pl.LightningModule, checkpoint_path: Path, path: Path) -> None:
    """Fills the module from its checkpoint, then `export_onnx`."""
    checkpoint = read_checkpoint(checkpoint_path)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    export_onnx(module, path)


def export_onnx(module: object, path: Path) -> None:
    """Writes ``path``, for batches of any size, once its answers are those of torch on one sample and on two.

    Until then an older file of that name stays as it was.

    Raises:
        InputError: the module has nothing to export, the packages are missing, or the file answers otherwise.
    """
    if not isinstance(module, ExportsModel):
        raise InputError(f"mode=export: {type(module).__name__} cannot be exported: take mode=test or mode=predict")
    try:
        import onnx  # noqa: F401 - torch.onnx needs it
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise InputError(f"mode=export needs the package {error.name}: pip install 'reprise[export]'") from error
    network, inputs, input_names, output_names, notes = module.export_model()
    network = network.cpu().eval()
    with torch.no_grad():
        program = torch.onnx.export(
            network,
            inputs,
            dynamo=True,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs),
            verbose=False,
        )
    model = program.model_proto
    for key, value in notes.items():
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    largest = float(np.max([_difference(session, network, tuple(part[:count] for part in inputs)) for count in (1, 2)]))
    if not largest <= TOLERANCE:
        raise InputError(
            f"the exported network answers otherwise than torch (difference {largest:.1e}, allowed {TOLERANCE:.0e}): "
            "nothing was written"
        )
    write_atomically(path, lambda stream: stream.write(content))
    say(f"{path}: {', '.join(input_names)} in, {', '.join(output_names)} out; differs from torch by {largest:.1e}")


def _difference(session: object, network: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Largest difference of any output, relative where outputs are larger than 1."""
    with torch.no_grad():
        expected = network(*inputs)
    names = [given.name for given in session.get_inputs()]
    answers = session.run(None, {name: part.numpy() for name, part in zip(names, inputs, strict=True)})
    largest = np.float64(0.0)
    for answer, wanted in zip(answers, expected, strict=True):
        if answer.shape != tuple(wanted.shape):
            return float("inf")
        scale = np.maximum(1.0, np.abs(wanted.numpy()))
        # Unlike Python's max it lets NaN through, which is no small difference.
        largest = np.maximum(largest, (np.abs(answer - wanted.numpy()) / scale).max())
    return float(largest)
