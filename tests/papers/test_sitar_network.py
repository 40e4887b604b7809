"""The network of SITAR: the paper's sizes, frame positions, windows, and a user's own weights."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resize_rel_pos_bias_table
from timm.models.swin_transformer import SwinTransformer

from lightning_modules.sitar.network import SuperImageSwin
from runs.errors import InputError

SWIN_S = {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]}
SWIN_B = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
TABLE = "relative_position_bias_table"


def network(**changes) -> SuperImageSwin:
    """A small one: canvas 24 = 3 x 8 = 2 x 12, maps of 6 and 3 tokens a side."""
    arguments = {
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [1, 2],
        "window": 3,
        "drop_path": 0.0,
        "num_classes": 5,
        "frames_fast": 8,
        "frames_slow": 4,
        "cell_fast": 8,
        "cell_slow": 12,
        "frame_pos": "per_grid",
        "weights": None,
        "pretrained": False,
        "checkpoint_path": None,
    }
    net = SuperImageSwin(**{**arguments, **changes})
    torch.nn.init.normal_(net.swin.head.fc.weight)  # zero at first: all logits would agree
    return net


def full_size(**changes) -> SuperImageSwin:
    canvas_576 = {"window": 12, "cell_fast": 192, "cell_slow": 288, "num_classes": 101}
    with torch.device("meta"):
        return network(**{**canvas_576, **changes})


@pytest.mark.parametrize(("size", "millions"), [(SWIN_S, 48.9), (SWIN_B, 86.9)], ids=["S", "B"])
def test_parameters_are_those_of_the_paper(size, millions):
    assert full_size(**size).parameter_count() / 1e6 == pytest.approx(millions, abs=0.5)


@pytest.mark.parametrize(
    ("size", "giga"),
    [
        (SWIN_S, 60.9),
        (SWIN_B, 106.2),
        ({**SWIN_S, "frames_fast": 16, "frames_slow": 8, "cell_slow": 256}, 108.7),
        ({**SWIN_S, "frames_fast": 16, "frames_slow": 8, "cell_fast": 144, "cell_slow": 192}, 60.9),
    ],
    ids=["S_576", "B_576", "S_768_4x4", "S_576_4x4"],
)
def test_multiply_adds_are_those_of_the_paper(size, giga):
    assert full_size(**size).multiply_adds() / 1e9 == pytest.approx(giga, rel=0.015)


def test_counting_multiply_adds_leaves_the_network_as_it_was():
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.multiply_adds()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_the_last_stage_attends_over_its_whole_map_without_shift():
    blocks = full_size(**SWIN_S).swin.layers[-1].blocks
    assert [(block.window_size, block.shift_size) for block in blocks] == [((18, 18), (0, 0))] * 2


def test_both_grids_share_the_transformer_and_one_pass_equals_two():
    net = network().eval()
    fast, slow = torch.randn(2, 3, 24, 24), torch.randn(3, 3, 24, 24)
    together = net((fast, 3), (slow, 2))
    apart = torch.cat([net((fast, 3)), net((slow, 2))])
    assert together.shape == (5, 5)
    assert torch.allclose(together, apart, atol=1e-6)


def test_a_frame_position_vector_reaches_exactly_the_tokens_of_its_cell():
    net = network()
    canvas = torch.zeros(1, 3, 24, 24)
    for grid, across in ((3, 2), (2, 3)):
        plain = net.swin.patch_embed(canvas)
        added = (net._tokens(canvas, grid) - plain)[0]
        table = net.frame_pos[str(grid)]
        for row in range(6):
            for column in range(6):
                cell = (row // across) * grid + column // across
                assert torch.allclose(added[row, column], table[cell], atol=1e-6)


def test_shared_frame_positions_lay_the_fast_table_over_both_canvases():
    net = network(frame_pos="shared")
    canvas = torch.zeros(1, 3, 24, 24)
    assert list(net.frame_pos) == ["3"]
    assert torch.equal(net._tokens(canvas, 2), net._tokens(canvas, 3))


def test_without_frame_positions_the_network_is_timms_own():
    net = network(frame_pos="none").eval()
    canvas = torch.randn(1, 3, 24, 24)
    assert torch.equal(net((canvas, 3)), net.swin(canvas))


def test_all_position_tables_are_named_as_free_of_weight_decay():
    net = network()
    tables = {name for name, _ in net.named_parameters() if TABLE in name or "frame_pos" in name}
    assert net.no_weight_decay() == tables
    assert len(tables) == 4 + 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cell_slow": 16}, "3 x 8 = 24 pixels wide and the slow one 2 x 16 = 32"),
        ({"cell_fast": 6, "cell_slow": 9}, "multiples of the patch side"),
        ({"window": 4}, "24 pixels gives 6 tokens a side"),
        ({"num_heads": [1, 2, 4]}, "depths has 2 stages"),
        ({"num_heads": [1, 3]}, "16 channels by 3 heads"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_sentence(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        network(**changes)


# ---- weights -------------------------------------------------------------------------------


def donor(**changes) -> SwinTransformer:
    """A Swin of another canvas, with other windows and classes, as published weights are."""
    arguments = {"embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 2}
    return SwinTransformer(img_size=16, num_classes=9, **{**arguments, **changes})


def test_pretrained_position_tables_are_interpolated_not_dropped(monkeypatch):
    published = donor()
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: published)
    net = network(pretrained=True, weights="swin_small_patch4_window7_224.ms_in22k")
    head = net.swin.head.fc.weight.clone()
    net.load_initial_weights()
    mine, theirs = net.swin.state_dict(), published.state_dict()
    for name, value in theirs.items():
        if name.startswith("head."):
            continue
        if name.endswith(TABLE):
            side = 3
            value = resize_rel_pos_bias_table(value, (side, side), mine[name].shape)
        assert torch.equal(mine[name], value), name
    assert torch.equal(net.swin.head.fc.weight, head)


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_the_weights_named_in_the_configs_exist_in_timm(size):
    assert f"swin_{size}_patch4_window7_224.ms_in22k" in timm.list_models("swin_*", pretrained=True)


def test_a_failed_download_is_one_sentence_with_the_weights_and_the_way_out(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    name = "swin_base_patch4_window7_224.ms_in22k"
    with pytest.raises(InputError, match=r"swin_base.*model\.network\.checkpoint_path") as caught:
        network(pretrained=True, weights=name).load_initial_weights()
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_weights_name_brings_the_nearest_known():
    with pytest.raises(InputError, match=r"did you mean .*swin_small_patch4_window7_224\.ms_in22k"):
        network(pretrained=True, weights="swin_small_patch4_window7_224.in22k").load_initial_weights()


@pytest.mark.parametrize("form", ["pth", "nested", "safetensors"])
def test_a_users_own_file_is_loaded_but_for_the_head(tmp_path, form):
    published = donor()
    state = published.state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state} if form == "nested" else state, path)
    net = network(checkpoint_path=str(path))
    net.load_initial_weights()
    assert torch.equal(net.swin.patch_embed.proj.weight, state["patch_embed.proj.weight"])
    assert torch.equal(
        net.swin.layers[1].downsample.reduction.weight,
        state["layers.1.downsample.reduction.weight"],
    )


def test_the_published_files_own_key_names_are_understood(tmp_path):
    """Microsoft's files end a stage with the down-sampling and carry index buffers."""
    state = donor().state_dict()
    renamed = {
        name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head"): value
        for name, value in state.items()
    }
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 4, 4)
    renamed["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.long)
    torch.save({"model": renamed}, tmp_path / "swin.pth")
    net = network(checkpoint_path=str(tmp_path / "swin.pth"))
    net.load_initial_weights()
    assert torch.equal(
        net.swin.layers[1].downsample.reduction.weight,
        state["layers.1.downsample.reduction.weight"],
    )


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda state: state.pop("norm.weight"), "1 missing keys: norm.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 unexpected keys: extra"),
        (lambda state: state.update({"norm.bias": torch.zeros(3)}), r"norm.bias \(3,\) where the"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_that_do_not_fit_name_the_keys(tmp_path, spoil, sentence):
    state = donor().state_dict()
    spoil(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=rf"model\.network\.checkpoint_path: .*{sentence}"):
        network(checkpoint_path=str(tmp_path / "weights.pth")).load_initial_weights()


@pytest.mark.parametrize("changes", [{"depths": (2, 4)}, {"num_heads": (2, 4)}, {"embed_dim": 16}])
def test_weights_of_another_swin_size_are_refused(tmp_path, changes):
    torch.save(donor(**changes).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"model\.network\.checkpoint_path: .*(fit|size)"):
        network(checkpoint_path=str(tmp_path / "weights.pth")).load_initial_weights()


def test_a_missing_weights_file_is_one_sentence():
    with pytest.raises(InputError, match=r"there is no weights file /nowhere/swin\.pth"):
        network(checkpoint_path="/nowhere/swin.pth").load_initial_weights()
