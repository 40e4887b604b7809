"""Strict weight loading: every key is accounted for and every fault is one sentence."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from components.weights import WeightsError, fit_state, load_state, read_state


class Executes:
    """What a hostile file would hold."""

    def __reduce__(self):
        return print, ("executed",)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_weights_are_found_bare_or_inside_a_checkpoint(tmp_path, wrap):
    source, target = net(), net()
    state = source.state_dict()
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "w.pth")
    load_state(target, tmp_path / "w.pth")
    assert all(torch.equal(target.state_dict()[name], value) for name, value in state.items())


def test_safetensors_are_read(tmp_path):
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    assert set(read_state(tmp_path / "w.safetensors")) == set(net().state_dict())


def test_free_prefixes_keep_their_own_weights_and_ignore_the_files():
    source, target = net().state_dict(), net()
    source["1.weight"] = torch.zeros(9, 9)
    own = target[1].weight.clone()
    fit_state(target, source, "the file", free=("1.",))
    assert torch.equal(target[0].weight, source["0.weight"])
    assert torch.equal(target[1].weight, own)


def test_faults_of_all_kinds_are_counted_and_named_in_one_sentence():
    state = net().state_dict()
    state.pop("1.bias")
    state["0.bias"] = torch.zeros(7)
    state.update({f"extra{i}": torch.zeros(1) for i in range(7)})
    with pytest.raises(WeightsError) as caught:
        fit_state(net(), state, "w.pth")
    assert str(caught.value) == (
        "w.pth does not fit the network: 7 unexpected keys: extra0, extra1, extra2, extra3, extra4 "
        "and 2 more; 1 missing keys: 1.bias; 1 other shapes: 0.bias (7,) where the network has (3,)"
    )


def test_a_refused_state_leaves_the_module_untouched():
    target = net()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = net().state_dict()
    state.pop("1.bias")
    with pytest.raises(WeightsError):
        fit_state(target, state, "w.pth")
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no weights file"),
        (b"\x80\x04 broken", "cannot be read as weights"),
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "holds no weights"),
        ({"model": Executes()}, "cannot be read as weights"),
    ],
    ids=["missing", "broken", "list", "empty", "pickled_object"],
)
def test_files_without_safe_weights_are_refused(tmp_path, capsys, content, sentence):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=sentence):
        read_state(path)
    assert "executed" not in capsys.readouterr().out


def test_a_broken_safetensors_file_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not one")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_state(tmp_path / "w.safetensors")
