"""The colouriser's runs: figures and floors, resumed, judged again, colouring a folder, in two processes."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from components.colour import split
from components.metrics.colour import ColourScores
from datamodules.sampling import EpochPosition, EpochSampler
from lightning_modules.gan_colorization import GanColorizationModule, Generator, PatchDiscriminator
from runs.errors import InputError
from tests.toy.running import judge_here, run_door, train_here

SMALL = [
    "trainer.enable_progress_bar=false",
    "experiment=gan_colorization_demo",
    "only_stages=[pretext]",
    "coloured_shapes.unlabelled=12",
    "coloured_shapes.held_out=14",
    "coloured_shapes.train=2",
    "coloured_shapes.test=2",
    "unet.width=4",
    "stages.pretext.data.batch_size=4",
    "trainer.max_epochs=3",
    "trainer.check_val_every_n_epoch=1",
]
QUIET = [*SMALL, "trainer=cpu"]
EVERY_EPOCH = "callbacks.figures.every_n_epochs=1"
UNDRAWN = "callbacks.figures=null"


def train(run_dir: Path, *words: str) -> dict:
    train_here(run_dir, *words)
    return json.loads((run_dir / "result.json").read_text())


def checkpoint(run_dir: Path) -> dict:
    return torch.load(run_dir / "pretext" / "checkpoints" / "last.ckpt", weights_only=True)


def same(first: object, second: object) -> bool:
    """Whether two nested containers of tensors are equal to the last bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return first == second


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    words = [*QUIET, f"paths.data_dir={root}/data"]
    return root, words, train(root / "run", *words, EVERY_EPOCH)


def test_a_run_scores_beside_the_floor_of_no_colour_and_shows_its_course(demo):
    root, _, result = demo
    names = {"psnr", "psnr_min", "psnr_max", "ssim", "ssim_min", "ssim_max", "ab_error", "chroma_ratio"}
    assert set(result["floors"]) == names
    assert {name.removeprefix("test/") for name in result["metrics"]} == names | {"images", "grey_images"}
    assert result["floors"]["chroma_ratio"] == 0
    stage = root / "run" / "pretext"
    assert {path.name for path in (stage / "figures").iterdir()} == {"val_colours.png", "test_colours.png"}
    assert sorted(checkpoint(root / "run")["course"]) == [1, 2, 3]
    assert tuple(checkpoint(root / "run")["course"][2].shape) == (8, 3, 64, 64)
    split_of = json.loads((stage / "split.json").read_text())
    assert (len(split_of["train"]), len(split_of["val"]), len(split_of["test"])) == (12, 8, 6)
    assert not {*split_of["val"], *split_of["test"]} & set(split_of["train"])
    with (stage / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/ab_error"]]
    assert len(rows) == 3 and all(float(row["val/floor_psnr"]) > 0 for row in rows)


def test_the_floor_is_that_of_the_held_out_pictures_computed_apart(demo):
    root, _, result = demo
    names = json.loads((root / "run" / "pretext" / "split.json").read_text())["test"]
    scores = ColourScores(1.5)
    for name in names:
        with Image.open(root / "data" / "coloured_shapes" / name) as picture:
            pixels = torch.tensor(np.asarray(picture).transpose(2, 0, 1)[None])
        scores.update(pixels, torch.zeros(1, 2, 64, 64))
    expected = scores.compute()
    for name in ("psnr", "ssim", "ab_error", "psnr_min"):
        assert result["floors"][name] == pytest.approx(float(expected[name]), rel=1e-5)


def test_a_checkpoint_alone_gives_the_same_test_numbers(demo):
    root, _, result = demo
    judged = judge_here(root / "run" / "pretext" / "checkpoints" / "last.ckpt", root / "eval")
    assert judged["metrics"] == result["metrics"] and judged["floors"] == result["floors"]


class Broken(Exception):
    pass


@pytest.mark.parametrize("every_n_steps", [None, 2])
def test_a_run_broken_in_an_epoch_goes_on_to_the_same_weights_and_moments(demo, tmp_path, every_n_steps):
    """From the last whole epoch, or from the batch before; dropout included."""
    root, words, result = demo
    words, compared = [*words, EVERY_EPOCH], ["state_dict", "optimizer_states", "global_step", "course"]
    if every_n_steps:  # two optimiser steps are one batch; without drawing, which takes longest
        words[-1:] = [UNDRAWN, f"callbacks.checkpoint.every_n_steps={every_n_steps}"]
        compared.remove("course")
    step, made = GanColorizationModule.training_step, []

    def broken(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 2:
            raise Broken
        made.append((self.current_epoch, batch_idx))
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        patch.setattr(GanColorizationModule, "training_step", broken)
        train(tmp_path / "run", *words)
    assert made == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert train(tmp_path / "run", *words)["metrics"] == result["metrics"]
    ours, theirs = checkpoint(tmp_path / "run"), checkpoint(root / "run")
    assert len(ours["optimizer_states"]) == 2
    for key in compared:
        assert same(ours[key], theirs[key]), key


def test_a_run_does_not_go_on_with_other_held_out_pictures(demo, tmp_path):
    root, words, _ = demo
    step = GanColorizationModule.training_step

    def broken(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise Broken
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        patch.setattr(GanColorizationModule, "training_step", broken)
        train(tmp_path / "run", *words, UNDRAWN)
    folder = root / "data" / "coloured_shapes" / "test2014"
    moved = sorted(folder.iterdir())[3]
    try:
        moved.rename(folder / "another.jpg")
        with pytest.raises(InputError, match=r"has held out 6 photographs that are not those .* now give: resume with"):
            train(tmp_path / "run", *words, UNDRAWN)
    finally:
        (folder / "another.jpg").rename(moved)


def test_grey_pictures_alone_cannot_be_judged_by(demo, tmp_path):
    root, *_ = demo
    shutil.copytree(root / "data" / "coloured_shapes", tmp_path / "grey")
    for path in (tmp_path / "grey" / "test2014").iterdir():
        with Image.open(path) as picture:
            grey = picture.convert("L")
        grey.save(path)
    (tmp_path / "grey" / "coloured_shapes.json").unlink()
    words = [f"data.root={tmp_path}/grey", "data.reader._target_=datamodules.photograph_colours.COCO2014Reader"]
    words += ["~data.reader.shapes", "+data.reader.test_count=6"]
    with pytest.raises(InputError, match="all 6 photographs to judge by are grey: there is no colour"):
        judge_here(root / "run" / "pretext" / "checkpoints" / "last.ckpt", tmp_path / "eval", *words)


def photographs(folder: Path) -> Path:
    """Three grey ones and a coloured one, of sizes of their own, in folders and formats of their own."""
    generator = np.random.default_rng(0)
    for name, size, mode in (
        ("a.jpg", (90, 70), "L"), ("deep/b.png", (51, 120), "L"), ("c.png", (64, 64), "L"), ("d.jpg", (70, 90), "RGB"),
    ):  # fmt: skip
        pixels = generator.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize(size).convert(mode).save(folder / name)
    return folder


def colour(root: Path, out: Path, folder: Path, *words: str) -> dict[str, np.ndarray]:
    """What mode=predict makes of a folder, by name."""
    judge_here(
        root / "run" / "pretext" / "checkpoints" / "last.ckpt", out, "mode=predict", f"data.predict_root={folder}",
        f"paths.data_dir={root}/gone", *words,
    )  # fmt: skip
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {}
    for row in rows:
        assert row["coloured"] == f"predictions/coloured/{Path(row['name']).with_suffix('.png')}"
        with Image.open(out / row["coloured"]) as picture:
            assert picture.format == "PNG" and picture.mode == "RGB"
            found[row["name"]] = np.asarray(picture)
    return found


def test_a_folder_is_coloured_at_the_pictures_own_size_and_lightness(demo, tmp_path):
    root, *_ = demo
    folder = photographs(tmp_path / "photographs")
    found = colour(root, tmp_path / "out", folder)
    assert not (root / "gone").exists()  # the training data need not be there
    assert {name: picture.shape[1::-1] for name, picture in found.items()} == {
        "a.jpg": (90, 70), "deep/b.png": (51, 120), "c.png": (64, 64), "d.jpg": (70, 90),
    }  # fmt: skip
    for name, picture in found.items():
        with Image.open(folder / name) as original:
            expected = split(torch.tensor(np.asarray(original.convert("RGB")).transpose(2, 0, 1)[None]))[0]
        ours, ab = split(torch.tensor(picture.transpose(2, 0, 1)[None]))
        inside = torch.tensor((picture.min(axis=2) > 0) & (picture.max(axis=2) < 255))  # not clipped to RGB
        assert (ours - expected).abs()[0, 0][inside].max() * 50 < 0.6
        assert ab.abs().mean() * 128 > 0.05


def test_a_picture_does_not_depend_on_the_others_and_dropout_is_switched_and_seeded(demo, tmp_path):
    """Trap 3: BatchNorm takes its statistics from the batch, so each picture is one."""
    root, *_ = demo
    folder = photographs(tmp_path / "photographs")
    alone = tmp_path / "alone"
    (alone / "deep").mkdir(parents=True)
    shutil.copy(folder / "deep" / "b.png", alone / "deep" / "b.png")
    name = "deep/b.png"
    batch, off = "model.predict_norm_eval=batch", "model.predict_dropout=false"
    together = colour(root, tmp_path / "1", folder, batch)[name]
    assert np.array_equal(colour(root, tmp_path / "2", alone, batch)[name], together)
    assert not np.array_equal(colour(root, tmp_path / "3", alone, batch, "seed=7")[name], together)
    still = colour(root, tmp_path / "4", alone, batch, off)[name]
    assert not np.array_equal(still, together)
    assert np.array_equal(colour(root, tmp_path / "5", alone, batch, off, "seed=7")[name], still)
    running = colour(root, tmp_path / "6", alone, off)[name]  # the default
    assert not np.array_equal(running, still)
    assert np.array_equal(colour(root, tmp_path / "7", folder, off)[name], running)


def test_half_precision_trains(demo, tmp_path):
    _, words, result = demo
    half = train(tmp_path / "run", *words, UNDRAWN, "trainer.precision=bf16-mixed", "trainer.max_epochs=1")
    assert half["floors"] == pytest.approx(result["floors"], rel=1e-6)  # no float16 in the metrics
    state = checkpoint(tmp_path / "run")["state_dict"]
    assert all(value.isfinite().all() and value.dtype in (torch.float32, torch.int64) for value in state.values())


def test_l1_alone_runs_by_a_switch(demo, tmp_path):
    _, words, _ = demo
    train(tmp_path / "run", *words, UNDRAWN, "model.gan=false", "trainer.max_epochs=1")
    content = checkpoint(tmp_path / "run")
    assert not [name for name in content["state_dict"] if name.startswith("discriminator")]
    assert len(content["optimizer_states"]) == 1


@pytest.mark.slow
def test_two_processes_take_the_step_of_their_mean_gradients(demo, tmp_path):
    """Each has half of the batch and its own BatchNorm statistics; by turns one network has no gradient."""
    root, words, _ = demo
    words = [word for word in words if word != "trainer=cpu"]
    words += [f"paths.data_dir={root}/data", UNDRAWN, "trainer.max_epochs=1", "unet.dropout=0.0"]
    words += ["stages.pretext.data.batch_size=6"]
    words += ["model.optimizer.betas=[0.0,0.0]", "model.discriminator_optimizer.betas=[0.0,0.0]"]  # a step is a sign
    still = ["model.optimizer.lr=1e-30", "model.discriminator_optimizer.lr=1e-30"]
    words += ["model.l1_weight=100.0"]
    for name, extra in (("start", [*still, "trainer=cpu"]), ("two", ["model.optimizer.lr=2e-4", "trainer=ddp_cpu"])):
        code, output = run_door("train.py", *words, *extra, f"hydra.run.dir={tmp_path}/{name}")
        assert code == 0, output
    start, found = (checkpoint(tmp_path / name)["state_dict"] for name in ("start", "two"))
    g, d = Generator(4, 6, 0.0, True, "batch"), PatchDiscriminator(4, "patch70")
    for network, prefix in ((g, "generator."), (d, "discriminator.")):
        own = {n.removeprefix(prefix): value for n, value in start.items() if n.startswith(prefix)}
        network.load_state_dict(own)
    config = {"lr": 2e-4, "betas": (0.0, 0.0)}
    optimizer_g, optimizer_d = (torch.optim.Adam(network.parameters(), **config) for network in (g, d))
    names = json.loads((tmp_path / "two" / "pretext" / "split.json").read_text())["train"]
    shares = [list(EpochSampler(12, 3, 2, 1, lambda rank=rank: EpochPosition(0, 0, rank, 2))) for rank in range(2)]

    def batch(rank: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = []
        for draw in shares[rank][3 * number : 3 * number + 3]:
            with Image.open(root / "data" / "coloured_shapes" / names[draw.index]) as picture:
                pixels.append(torch.tensor(np.asarray(picture).transpose(2, 0, 1)))
        return split(torch.stack(pixels))

    for number in range(2):
        halves = [batch(rank, number) for rank in range(2)]
        entropy = torch.nn.functional.binary_cross_entropy_with_logits
        loss = 0.0
        for x, y in halves:
            with torch.no_grad():
                fake = g(x)
            real, judged = d(x, y), d(x, fake)
            loss = loss + 0.25 * (entropy(real, torch.ones_like(real)) + entropy(judged, torch.zeros_like(judged)))
        optimizer_d.zero_grad()
        loss.backward()
        optimizer_d.step()
        loss = 0.0
        for x, y in halves:
            fake = g(x)
            answer = d(x, fake)
            loss = loss + 0.5 * (entropy(answer, torch.ones_like(answer)) + 100 * (fake - y).abs().mean())
        optimizer_g.zero_grad()
        loss.backward()
        optimizer_g.step()
    for network, prefix in ((g, "generator."), (d, "discriminator.")):
        for name, expected in network.named_parameters():
            if name.endswith("bias") and name not in ("b.bias", "out.bias", "e1.conv.bias"):
                continue  # before a BatchNorm its gradient is rounding alone
            moved = (found[prefix + name] - start[prefix + name]).abs().mean()
            assert moved > 1e-5, name
            agree = (found[prefix + name] - expected).abs() < 1e-5
            assert agree.float().mean() > 0.98, name


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_demo_learns_colours_from_form(tmp_path, seed):
    """After 400 steps the error is at most 0.6 of that of no colour, with about as much colour as there is."""
    words = ["trainer=cpu", "trainer.enable_progress_bar=false", "experiment=gan_colorization_demo", f"seed={seed}"]
    result = train(tmp_path / "run", *words, "only_stages=[pretext]", UNDRAWN, f"paths.data_dir={tmp_path}/data")
    assert checkpoint(tmp_path / "run")["global_step"] == 800  # of two optimisers
    assert result["metrics"]["test/ab_error"] <= 0.6 * result["floors"]["ab_error"]
    assert 0.4 <= result["metrics"]["test/chroma_ratio"] <= 1.3


def test_real_photographs_train_and_are_coloured(sample_data, tmp_path):
    """Some photographs of the sample, three of them to judge by, at 64 pixels; one turned grey is coloured."""
    source = sample_data / "coco128_voc" / "VOCdevkit" / "VOC2012"
    folder = tmp_path / "voc" / "VOCdevkit" / "VOC2012"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    held_out = (source / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:3]
    others = [path.stem for path in sorted((source / "JPEGImages").glob("*.jpg"))[:16] if path.stem not in held_out]
    for name in (*held_out, *others):
        shutil.copy(source / "JPEGImages" / f"{name}.jpg", folder / "JPEGImages")
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(held_out))
    words = ["trainer=cpu", "trainer.enable_progress_bar=false", "experiment=gan_colorization_coco128", UNDRAWN]
    words += [f"data.root={tmp_path}/voc", "only_stages=[pretext]", "pixels=64", "unet.depth=6", "unet.width=4"]
    result = train(tmp_path / "run", *words, "trainer.max_epochs=1", "stages.pretext.data.batch_size=4")
    assert result["paper"]["metrics"]["test/psnr"] == 20.94
    assert result["metrics"]["test/images"] + result["metrics"]["test/grey_images"] == 3
    (tmp_path / "grey").mkdir()
    with Image.open(source / "JPEGImages" / f"{held_out[0]}.jpg") as picture:
        size = picture.size
        picture.convert("L").save(tmp_path / "grey" / "photograph.jpg")
    found = colour(tmp_path, tmp_path / "out", tmp_path / "grey")
    assert found["photograph.jpg"].shape[1::-1] == size


def test_a_missing_folder_is_answered_in_words(tmp_path):
    with pytest.raises(InputError, match="gone is no folder: it must hold train2014"):
        train_here(tmp_path / "run", "trainer=cpu", "experiment=gan_colorization_coco", f"data.root={tmp_path}/gone")
