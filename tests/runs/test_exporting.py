"""Exported networks: one file that onnxruntime runs, for any batch, with the numbers of torch."""

import errno

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from runs.errors import InputError
from runs.exporting import export_onnx


class Halved(nn.Module):
    """Two outputs of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.linear(x), x.mean(dim=1)


class Exporting(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def export_model(self):
        return self.network, (torch.randn(2, 4),), ["x"], ["y", "mean"], {"threshold": "0.5"}


def test_the_file_answers_as_torch_for_any_batch_and_carries_its_notes(tmp_path):
    module = Exporting(Halved())
    path = tmp_path / "deep" / "model.onnx"
    export_onnx(module, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["x"]
    for count in (1, 2, 7):
        x = torch.randn(count, 4)
        y, mean = session.run(["y", "mean"], {"x": x.numpy()})
        expected = module.network(x)
        assert np.allclose(y, expected[0].detach().numpy(), atol=1e-5)
        assert np.allclose(mean, expected[1].detach().numpy(), atol=1e-5)
    assert {item.key: item.value for item in onnx.load(str(path)).metadata_props}["threshold"] == "0.5"


def test_a_file_that_answers_otherwise_is_not_left_behind(tmp_path, monkeypatch):
    import runs.exporting

    monkeypatch.setattr(runs.exporting, "TOLERANCE", -1.0)
    path = tmp_path / "model.onnx"
    with pytest.raises(InputError, match="answers otherwise than torch"):
        export_onnx(Exporting(Halved()), path)
    assert not list(tmp_path.iterdir())


def test_an_older_file_stays_whole_until_a_new_one_has_been_checked_and_written(tmp_path, monkeypatch):
    import runs.exporting

    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")
    with monkeypatch.context() as patch:
        patch.setattr(runs.exporting, "TOLERANCE", -1.0)
        with pytest.raises(InputError, match="answers otherwise than torch"):
            export_onnx(Exporting(Halved()), path)
    assert path.read_bytes() == b"older"
    with monkeypatch.context() as patch:
        patch.setattr("runs.atomic_files.flush_to_disk", _full_disk)
        with pytest.raises(InputError, match="the disk is full"):
            export_onnx(Exporting(Halved()), path)
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]
    export_onnx(Exporting(Halved()), path)
    assert path.read_bytes() != b"older" and list(tmp_path.iterdir()) == [path]


def _full_disk(stream):
    raise OSError(errno.ENOSPC, "no space left")


def test_an_answer_that_is_no_number_is_no_small_difference(tmp_path):
    network = Halved()
    network.linear.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="answers otherwise than torch"):
        export_onnx(Exporting(network), tmp_path / "model.onnx")


def test_a_module_without_an_export_is_told_what_it_can_do(tmp_path):
    with pytest.raises(InputError, match="Halved cannot be exported: take mode=test or mode=predict"):
        export_onnx(Halved(), tmp_path / "model.onnx")
