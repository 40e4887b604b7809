"""Buffers that take the shape of the checkpoint."""

import pytest
import torch
from torch import nn

from components.variable_buffers import VariableBuffers


class Inner(VariableBuffers):
    def __init__(self):
        super().__init__()
        self.register_variable_buffer("labels", torch.int64)
        self.register_variable_buffer("table", torch.float64, axes=2)
        self.register_buffer("fixed", torch.zeros(2))


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.other = Inner(), Inner()


def test_buffers_come_back_in_the_shape_and_values_they_were_saved_with(tmp_path):
    saved = Outer()
    saved.inner.labels = torch.arange(7)
    saved.inner.table = torch.rand(3, 2, dtype=torch.float64)
    torch.save(saved.state_dict(), tmp_path / "state.pt")
    loaded = Outer()
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(loaded.inner.labels, torch.arange(7))
    assert torch.equal(loaded.inner.table, saved.inner.table)
    assert loaded.other.labels.shape == (0,) and loaded.other.table.shape == (0, 0)


def test_a_state_of_another_shape_replaces_one_that_is_there():
    module, other = Inner(), Inner()
    module.labels, other.labels = torch.arange(9), torch.arange(4)
    module.load_state_dict(other.state_dict())
    assert torch.equal(module.labels, torch.arange(4))


@pytest.mark.parametrize(
    ("name", "value"),
    [("labels", torch.zeros(2, 2, dtype=torch.int64)), ("labels", torch.zeros(5)), ("fixed", torch.zeros(3))],
)
def test_another_number_of_axes_or_type_and_fixed_buffers_are_refused_as_ever(name, value):
    state = {**Inner().state_dict(), name: value}
    with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
        Inner().load_state_dict(state)


def test_a_state_without_the_buffer_is_refused():
    state = Inner().state_dict()
    del state["labels"]
    with pytest.raises(RuntimeError, match="labels"):
        Inner().load_state_dict(state)


def test_they_move_with_the_module():
    module = Inner()
    module.table = torch.zeros(2, 2, dtype=torch.float64)
    assert module.to("meta").table.device.type == "meta"
