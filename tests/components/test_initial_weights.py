"""Pre-trained weights are loaded when a fit starts afresh, and only then."""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from components.initial_weights import StartsFromInitialWeights
from components.variable_buffers import VariableBuffers


class Network(nn.Linear):
    def __init__(self) -> None:
        super().__init__(1, 1)
        self.loaded = 0

    def load_initial_weights(self) -> None:
        self.loaded += 1


class Hooks(pl.LightningModule):
    """A base with hooks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def on_fit_start(self) -> None:
        self.called.append("fit")

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.called.append("load")


class Module(VariableBuffers, StartsFromInitialWeights, Hooks):
    def __init__(self) -> None:
        super().__init__()
        self.network = Network()
        self.register_variable_buffer("labels", torch.int64)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.network(batch).mean()

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(epochs: int) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip


DATA = DataLoader(torch.ones(1, 1))


def test_a_fresh_fit_loads_them_once_and_one_that_goes_on_does_not(tmp_path):
    fresh, path = Module(), tmp_path / "last.ckpt"
    fresh.labels = torch.arange(5)
    training = trainer(1)
    training.fit(fresh, DATA)
    assert fresh.network.loaded == 1 and fresh.called == ["fit"]
    training.save_checkpoint(path)
    resumed = Module()
    trainer(2).fit(resumed, DATA, ckpt_path=path, weights_only=True)
    assert resumed.network.loaded == 0 and resumed.called == ["load", "fit"]
    assert torch.equal(resumed.labels, torch.arange(5))


def test_judging_does_not_load_them():
    module = Module()
    trainer(1).test(module, DATA, verbose=False)
    assert module.network.loaded == 0


def test_a_module_can_start_from_something_else():
    class FromElsewhere(Module):
        def load_initial_weights(self) -> None:
            self.called.append("elsewhere")

    module = FromElsewhere()
    module.on_fit_start()
    assert module.network.loaded == 0 and module.called == ["fit", "elsewhere"]
