"""Stereo pairs as batches: scaling, patches at the maps of the last round, and bad input in words."""

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.sampling import Draw, EpochPosition, EpochSampler
from datamodules.shapes_stereo import ShapesStereo, ShapesStereoReader
from datamodules.stereo import (
    PairReader,
    PatchStream,
    StereoDataModule,
    StereoPair,
    block_mean,
    block_median,
    standardised,
)
from datamodules.stereo_files import Middlebury2014, S2PTiles, write_pfm
from runs.errors import InputError

H, W, PATCH, R = 40, 60, 11, 5
SETTINGS = {
    "scale": 1,
    "disparity_sign": -1,
    "min_disp": None,
    "max_disp": None,
    "train_count": None,
    "test_count": None,
    "split_seed": 0,
    "judge_on": "test",
    "batch_size": 16,
    "patches_per_image": 4,
    "batches_per_epoch": 3,
    "patch": PATCH,
    "max_offset": 24,
    "predict_root": None,
    "seed": 0,
}
SHAPES = ShapesStereo(0, H, W, 3, (2, 6), 0, 1.1, 5.0, 0.03)


def a_pair(seed: int = 0, height: int = H, width: int = W) -> StereoPair:
    random = np.random.default_rng(seed)
    left, right = random.normal(100 + seed, 20 + seed, (2, height, width)).astype(np.float32)
    there = np.ones((height, width), dtype=bool)
    return StereoPair(f"pair{seed}", left, right, there, there.copy(), (0, 8), None)


class Rounds:
    """What a store shows: maps by pair, and the sign that they were made with."""

    class Generation:
        def __init__(self, number: int, maps: dict[int, np.ndarray], sign: int) -> None:
            self.number, self.maps, self.notes = number, maps, {"sign": sign}

        def __getitem__(self, name: str) -> dict[int, np.ndarray]:
            assert name == "disparity"
            return self.maps

    def __init__(self) -> None:
        self.generation = None

    def show(self, number: int, maps: dict[int, np.ndarray], sign: int = -1) -> None:
        self.generation = self.Generation(number, {i: map_.astype(np.float16) for i, map_ in maps.items()}, sign)


def a_stream(pairs, maps=None, sign: int = -1, group: int = 4, seed: int = 7) -> PatchStream:
    stream = PatchStream(pairs, group, PATCH, 24, seed)
    stream.rounds = Rounds()
    stream.rounds.show(1, maps or {i: np.full(pair.left.shape, 3.0) for i, pair in enumerate(pairs)}, sign)
    return stream


def located(patch: np.ndarray, image: np.ndarray) -> tuple[int, int]:
    """Where a patch lies in an image, by looking everywhere."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (PATCH, PATCH))
    ((y, x),) = np.argwhere((windows == patch).all(axis=(2, 3)))
    return y + R, x + R


# --- patches


@pytest.mark.parametrize("sign", [-1, 1])
def test_patches_lie_where_the_maps_say(sign):
    pairs = [a_pair(0), a_pair(1, 30, 50)]
    random = np.random.default_rng(3)
    maps = {i: random.integers(0, 9, pair.left.shape).astype(float) for i, pair in enumerate(pairs)}
    for map_ in maps.values():
        map_[random.random(map_.shape) < 0.5] = np.nan
    stream = a_stream(pairs, maps, sign)
    batch = stream.__getitems__([Draw(number % 2, number) for number in range(60)])
    offsets = []
    for left, match, other, index in zip(*(batch[key] for key in ("left", "match", "other", "index")), strict=True):
        pair = pairs[index]
        y, x = located(left[0], standardised(pair.left))
        y_match, x_match = located(match[0], standardised(pair.right))
        y_other, x_other = located(other[0], standardised(pair.right))
        assert y == y_match == y_other
        assert x_match == x + sign * maps[index][y, x]
        offsets.append(x_other - x_match)
    assert 0 not in offsets and min(offsets) < -20 and max(offsets) > 20 and max(map(abs, offsets)) <= 24
    assert {-1, 1} & set(offsets)  # within the tolerance of the check, and legitimate


def test_offsets_are_even_over_all_steps_that_stay_in_the_image():
    stream = a_stream([a_pair()])
    share = (np.arange(4800) + 0.5) / 4800
    middle = stream._offsets(np.full(4800, 30), np.full(4800, W), share)
    values, counts = np.unique(middle, return_counts=True)
    assert values.tolist() == [*range(-24, 0), *range(1, 25)] and set(counts) == {100}
    edge = stream._offsets(np.full(4800, R + 2), np.full(4800, W), share)
    assert set(edge) == {-2, -1, *range(1, 25)}


def test_a_batch_is_that_of_its_draws_one_by_one_and_a_draw_depends_on_seed_and_number_alone():
    pairs = [a_pair(0), a_pair(1)]
    stream = a_stream(pairs)
    draws = [Draw(1, 5), Draw(0, 6), Draw(1, 7)]
    batch = stream.__getitems__(draws)
    other = a_stream(pairs)
    for place in (2, 0, 1):  # in another order, in another stream
        alone = other[draws[place]]
        for key, values in alone.items():
            assert np.array_equal(batch[key][4 * place : 4 * place + 4], values)
    assert not np.array_equal(a_stream(pairs, seed=8)[draws[0]]["left"], stream[draws[0]]["left"])


def test_two_processes_draw_together_what_one_draws():
    def draws(rank: int, world: int) -> list[Draw]:
        return list(EpochSampler(2, 4 // world, 3, 0, lambda: EpochPosition(1, 0, rank, world)))

    stream = a_stream([a_pair(0), a_pair(1)])
    together = stream.__getitems__(draws(0, 1))["left"]
    halves = [stream.__getitems__(draws(rank, 2))["left"].reshape(6, 4, -1) for rank in (0, 1)]
    merged = np.stack(halves, axis=1).reshape(12, 4, -1)
    assert np.array_equal(together.reshape(12, 4, -1), merged)


def test_the_newest_maps_are_read_from_the_very_next_draw_on():
    pair = a_pair()
    stream = a_stream([pair], {0: np.full((H, W), 3.0)})
    draw = Draw(0, 1)
    before = [located(patch[0], standardised(pair.left))[1] - located(match[0], standardised(pair.right))[1]
              for patch, match in zip(stream[draw]["left"], stream[draw]["match"], strict=True)]  # fmt: skip
    stream.rounds.show(2, {0: np.full((H, W), 6.0)})
    after = [located(patch[0], standardised(pair.left))[1] - located(match[0], standardised(pair.right))[1]
             for patch, match in zip(stream[draw]["left"], stream[draw]["match"], strict=True)]  # fmt: skip
    assert set(before) == {3} and set(after) == {6}


def test_patches_are_cut_from_the_very_images_that_are_matched():
    pair = a_pair()
    sample = pair.sample(0, -1)
    patch = a_stream([pair])[Draw(0, 0)]["left"][0, 0]
    y, x = located(patch, sample["left"].numpy())
    assert np.array_equal(sample["left"].numpy()[y - R : y + R + 1, x - R : x + R + 1], patch)
    assert float(sample["left"].mean()) == pytest.approx(0, abs=1e-5)
    assert float(sample["left"].std(correction=0)) == pytest.approx(1, abs=1e-5)
    # Normalised by itself, as a batch of patches would be, it is another one.
    assert not np.allclose(patch, standardised(patch), atol=1e-2)


def test_pixels_without_a_value_on_either_side_are_not_drawn():
    pair = a_pair()
    pair.valid_left[:, :40] = False
    pair.valid_right[:, 42:] = False
    stream = a_stream([pair])
    for number in range(30):
        for patch in stream[Draw(0, number)]["left"]:
            _, x = located(patch[0], standardised(pair.left))
            assert x >= 40 and x - 3 < 42


def test_a_pair_without_consistent_pixels_gives_way_to_the_next_and_none_at_all_is_an_error():
    pairs = [a_pair(0), a_pair(1)]
    empty = np.full((H, W), np.nan)
    stream = a_stream(pairs, {0: empty, 1: np.full((H, W), 2.0)})
    assert set(stream[Draw(0, 0)]["index"]) == {1}
    with pytest.raises(InputError, match="no consistent pixel is 5 pixels inside both images"):
        a_stream(pairs, {0: empty, 1: empty})[Draw(0, 0)]
    stream.rounds = Rounds()
    with pytest.raises(InputError, match="the first round must come before training"):
        stream[Draw(0, 0)]


# --- scaling


def test_images_shrink_by_means_and_truth_by_medians_that_never_mix_near_and_far():
    values = np.arange(42, dtype=np.float32).reshape(6, 7)
    mean = block_mean(values, 3)
    assert mean.tolist() == [
        [values[:3, :3].mean(), values[:3, 3:6].mean()],
        [values[3:, :3].mean(), values[3:, 3:6].mean()],
    ]
    truth = np.array([[2, 2, 8, 8], [2, 8, 8, np.nan], [np.nan, np.nan, 4, np.nan], [np.nan, 4, 4, 4]])
    median = block_median(truth, 2)
    assert median[0].tolist() == [2, 8] and np.isnan(median[1, 0]) and median[1, 1] == 4


@pytest.fixture
def root(tmp_path):
    SHAPES.write(tmp_path / "scene")
    return tmp_path / "scene"


def test_disparities_are_divided_by_the_scale_and_the_range_is_rounded(root):
    files = Middlebury2014("Q", False).pairs(root)[0]
    whole = PairReader(Middlebury2014("Q", False), 1, None, None).read(files)
    half = PairReader(Middlebury2014("Q", False), 2, None, None).read(files)
    assert whole.range == (0, 8) and half.range == (0, 4)
    assert half.left.shape == half.truth.shape == (H // 2, W // 2)
    assert set(np.unique(half.truth)) <= set(np.unique(whole.truth) / 2)
    assert np.array_equal(half.left, block_mean(whole.left, 2))


def test_motorcycle_at_a_quarter_has_18_candidates(sample_data):
    reader = Middlebury2014("Q", False)
    pair = PairReader(reader, 4, None, None).read(reader.pairs(sample_data / "middlebury2014")[0])
    assert pair.range == (0, 17) and pair.left.shape == (125, 185)
    assert np.nanmax(pair.truth) == pytest.approx(59.91 / 4, abs=0.05)


# --- bad input


def write_tiles(root, left: np.ndarray, right: np.ndarray, extent: str | None = "0\n5\n") -> None:
    for side, image in (("im_left", left), ("im_right", right)):
        (root / side).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / side / "tile.tif")
    if extent is not None:
        (root / "disp_minmax").mkdir(exist_ok=True)
        (root / "disp_minmax" / "tile.txt").write_text(extent)


def read_tile(root, scale: int = 1, min_disp=None, max_disp=None) -> StereoPair:
    reader = S2PTiles(False)
    return PairReader(reader, scale, min_disp, max_disp).read(reader.pairs(root)[0])


NOISE = np.random.default_rng(0).normal(100, 20, (2, H, W)).astype(np.float32)


def test_a_minimum_disparity_is_kept_and_the_config_wins_over_the_files(tmp_path):
    write_tiles(tmp_path, *NOISE, "-7\n13\n")
    assert read_tile(tmp_path).range == (-7, 13)
    assert read_tile(tmp_path, scale=4).range == (-2, 3)
    assert read_tile(tmp_path, min_disp=0, max_disp=9).range == (0, 9)


@pytest.mark.parametrize(
    ("right", "extent", "sentence"),
    [
        (NOISE[1][:, :-2], "0\n5", rf"one shape \(rows x columns\): .*tif has {H}x{W} and .*tif has {H}x{W - 2}"),
        (np.full((H, W), 7, np.float32), "0\n5", r"im_right/tile.tif has one grey value everywhere"),
        (np.full((H, W), np.nan, np.float32), "0\n5", r"im_right/tile.tif has one grey value everywhere"),
        (NOISE[1], None, r"nothing says how large the disparities of .*im_left/tile.tif are: add data.max_disp="),
        (NOISE[1], f"0\n{W}", rf"disparities up to {W} do not fit .*im_left/tile.tif, which is {W} pixels wide"),
        (NOISE[1], f"{-W}\n0", rf"disparities up to {W} do not fit"),
    ],
)  # fmt: skip
def test_a_pair_that_cannot_be_matched_is_named(tmp_path, right, extent, sentence):
    write_tiles(tmp_path, NOISE[0], right, extent)
    with pytest.raises(InputError, match=sentence):
        read_tile(tmp_path)


def test_nan_pixels_get_the_mean_and_are_marked(tmp_path):
    left = NOISE[0].copy()
    left[3:5, 7:9] = np.nan
    write_tiles(tmp_path, left, NOISE[1])
    pair = read_tile(tmp_path)
    assert not pair.valid_left[3:5, 7:9].any() and pair.valid_left.sum() == H * W - 4 and pair.valid_right.all()
    assert np.allclose(pair.left[3:5, 7:9], np.nanmean(left))
    assert not read_tile(tmp_path, scale=2).valid_left[1:3, 3:5].all()


def test_truth_of_another_size_is_refused(root):
    scene = next((root / "trainingQ").iterdir())
    write_pfm(scene / "disp0GT.pfm", np.zeros((3, 3), dtype=np.float32))
    reader = Middlebury2014("Q", False)
    with pytest.raises(InputError, match=r"disp0GT.pfm has the shape \(3, 3\)"):
        PairReader(reader, 1, None, None).read(reader.pairs(root)[0])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"scale": 0}, "data.scale=0 must be a whole number from 1"),
        ({"patch": 10}, "data.patch=10 must be odd"),
        ({"max_offset": 0}, "data.max_offset=0 must be 1 pixel or more"),
        ({"batch_size": 15}, "data.batch_size=15 must be a multiple of data.patches_per_image=4"),
        ({"train_count": 3}, "go together: give both or neither"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        StereoDataModule(Middlebury2014("Q", False), "somewhere", **{**SETTINGS, **settings})


@pytest.mark.parametrize(
    ("settings", "stage", "sentence"),
    [
        ({"scale": 4}, "fit", r"pair shapes has 10x15 pixels here: patches of 11 pixels need larger images"),
        ({"scale": 50}, "fit", r"data.scale=50 leaves no pixel of .*im0.png, whose shorter side has 40"),
        ({"train_count": 1, "test_count": 1}, "fit", r"at most 1 together, the pairs in"),
        ({}, "predict", r"data.predict_root is not set"),
        ({"predict_root": "/nowhere"}, "predict", r"data.predict_root=/nowhere is no folder"),
    ],
)
def test_data_that_do_not_fit_the_settings_are_named(root, settings, stage, sentence):
    data = StereoDataModule(Middlebury2014("Q", False), str(root), **{**SETTINGS, **settings})
    with pytest.raises(InputError, match=sentence):
        data.setup(stage)


def test_a_folder_to_predict_without_pairs_is_answered(root, tmp_path):
    (tmp_path / "empty").mkdir()
    data = StereoDataModule(Middlebury2014("Q", False), None, **{**SETTINGS, "predict_root": str(tmp_path / "empty")})
    with pytest.raises(InputError, match=r"has neither im_left/ with im_right/ nor the layout of data\.reader"):
        data.setup("predict")
    with pytest.raises(InputError, match=r"data.root=/nowhere is no folder: get MiddEval3"):
        StereoDataModule(Middlebury2014("Q", False), "/nowhere", **SETTINGS).setup("fit")


# --- splits, pairs


def test_train_and_test_pairs_are_drawn_apart_and_judged_on_either(tmp_path):
    for number in range(6):
        for side in ("im_left", "im_right"):
            (tmp_path / side).mkdir(exist_ok=True)
            Image.fromarray(NOISE[0] + number).save(tmp_path / side / f"{number}.tif")
    found = {}
    for judge_on in ("train", "test"):
        changes = {"train_count": 3, "test_count": 2, "max_disp": 5, "judge_on": judge_on}
        data = StereoDataModule(S2PTiles(False), str(tmp_path), **{**SETTINGS, **changes})
        data.setup("fit")
        found[judge_on] = {files.name for files in data._test}
        trained = {pair["name"] for pair in data.training_pairs()}
        assert trained == found["train"]
    assert len(found["train"]) == 3 and len(found["test"]) == 2 and not found["train"] & found["test"]


def test_pairs_carry_their_index_sign_and_truth(root):
    data = StereoDataModule(Middlebury2014("Q", False), str(root), **{**SETTINGS, "disparity_sign": "auto"})
    data.setup("fit")
    (pair,) = data.training_pairs()
    assert int(pair["index"]) == 0 and int(pair["sign"]) == 0 and pair["truth"].shape == (H, W)
    assert pair["range"].tolist() == [0, 8] and pair["valid"].all()
    assert torch.equal(pair["guide_left"].round(), pair["guide_left"])  # raw grey values


# --- the generated scene


def test_the_right_image_shows_the_left_one_where_the_truth_says():
    quiet = ShapesStereo(3, 96, 128, 5, (2, 12), 0, 1.0, 0.0, 0.0)
    left, right, disparity, visible = quiet.scene()
    rows, columns = np.nonzero(visible)
    target = (columns - disparity[rows, columns]).astype(int)
    assert np.array_equal(left[rows, columns], right[rows, target])
    hidden = ~visible
    assert 0.02 < hidden.mean() < 0.3 and set(np.unique(disparity)) <= set(range(13))
    assert len(np.unique(disparity)) >= 4
    owners = {}
    for y, x in zip(*np.nonzero(disparity >= 0), strict=True):
        owners.setdefault((y, x - int(disparity[y, x])), []).append(x)
    for (y, x_right), lefts in owners.items():
        front = max(lefts, key=lambda x: disparity[y, x])
        assert [x for x in lefts if visible[y, x]] == ([front] if x_right >= 0 else [])


def test_the_scene_is_written_once_in_middleburys_layout_and_replaced_only_where_it_is_ours(tmp_path):
    reader = ShapesStereoReader(True, 0, H, W, 3, [2, 6], 0, 1.1, 5.0, 0.03)
    reader.prepare(tmp_path / "s")
    (files,) = reader.pairs(tmp_path / "s")
    time = files.left.stat().st_mtime_ns
    reader.prepare(tmp_path / "s")
    assert files.left.stat().st_mtime_ns == time
    truth = reader.truth(files)
    assert np.array_equal(np.isnan(truth), ~SHAPES.scene()[3])
    ShapesStereoReader(True, 1, H, W, 3, [2, 6], 0, 1.1, 5.0, 0.03).prepare(tmp_path / "s")
    assert files.left.stat().st_mtime_ns != time
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"")
    with pytest.raises(InputError, match="holds something else than a generated scene"):
        reader.prepare(tmp_path / "mine")
    with pytest.raises(InputError, match=r"data.reader.disparities=\[6, 2\] must be"):
        ShapesStereoReader(True, 0, H, W, 3, [6, 2], 0, 1.1, 5.0, 0.03)
