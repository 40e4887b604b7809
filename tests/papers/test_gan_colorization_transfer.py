"""What goes from the colouriser into the two tasks, what is frozen, losses, and how the arms compare."""

import logging
import math
import warnings
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from components.colour import lightness
from lightning_modules.gan_colorization import Classifier, ClassifierModule, Generator, Segmenter, SegmenterModule
from lightning_modules.gan_colorization.keras_mean_iou import KerasMeanIoURaw
from runs.composition import compose_config, group_choices
from runs.errors import InputError
from runs.stages import Stage, fill_stage_checkpoints, resolve_stage, stages_of

SIZE = {"width": 4, "depth": 5, "norm_eval": "batch"}
NOISE = {"dropout": 0.5, "dropout_in_evaluation": True}
ADAM = partial(torch.optim.Adam, lr=1e-3)
TASKS = ["classification", "segmentation"]


def module(task: str, init: str = "scratch", init_from: Path | None = None, freeze: bool = False, **changes):
    settings = {"optimizer": ADAM, "num_classes": 3, "init": init, "freeze": freeze}
    settings["init_from"] = None if init_from is None else str(init_from)
    if task == "classification":
        network = Classifier(3, hidden=16, dropout=0.5, **SIZE | changes)
        return ClassifierModule(network, **settings)
    return SegmenterModule(Segmenter(3, **NOISE | SIZE | changes), noise_seed=0, **settings)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.fixture
def colouriser(tmp_path) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint as the pretext stage writes it, a discriminator in it; and the generator's weights."""
    torch.manual_seed(5)
    state = weights_of(Generator(**NOISE | SIZE))
    for name, value in state.items():
        if name.endswith("running_mean"):
            value += 1.0  # statistics travel too
    path = tmp_path / "pretext.ckpt"
    other = {"discriminator.layers.0.conv.weight": torch.zeros(3)}
    torch.save({"state_dict": {f"generator.{name}": value for name, value in state.items()} | other}, path)
    return path, state


# ---- transfer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "taken"),
    [
        ("classification", ["e1", "e2", "e3", "e4", "b"]),
        ("segmentation", ["e1", "e2", "e3", "e4", "b", "d1", "d2", "d3", "d4"]),
    ],
)
def test_exactly_the_shared_layers_are_taken_and_a_line_says_so(task, taken, colouriser, caplog):
    path, state = colouriser
    downstream = module(task, "transfer", path)
    before = weights_of(downstream.network)
    with caplog.at_level(logging.INFO, logger="reprise"):
        downstream.load_initial_weights()
    after = weights_of(downstream.network)
    for name, value in after.items():
        if name.partition(".")[0] in taken:
            assert torch.equal(value, state[name]), name
        else:
            assert torch.equal(value, before[name]), name
    new = {name for name in after if name.partition(".")[0] not in taken}
    assert new and all(name.startswith(("head.", "out.")) for name in new)
    count = sum(p.numel() for name, p in downstream.network.named_parameters() if name not in new)
    (line,) = caplog.messages
    assert line.startswith(f"{count:,} weights of {', '.join(taken)} come from {path}; random: ")
    assert line.endswith("head" if task == "classification" else "out")


def spoil(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    layer = state.pop("generator.e3.conv.weight")
    if how == "renamed":
        state["generator.e3.conv.kernel"] = layer
    elif how == "of another shape":
        state["generator.e3.conv.weight"] = layer[:, :2]
    elif how == "one too many":
        state |= {"generator.e3.conv.weight": layer, "generator.e9.conv.weight": layer}
    return state


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("how", ["renamed", "missing", "of another shape", "one too many"])
def test_a_checkpoint_that_does_not_fit_is_refused_and_nothing_is_loaded(task, how, colouriser, tmp_path):
    """Trap 6: loaded without a look, a renamed key gives a network from scratch and two equal arms."""
    path, _ = colouriser
    state = spoil(torch.load(path, weights_only=True)["state_dict"], how)
    torch.save({"state_dict": state}, tmp_path / "spoilt.ckpt")
    downstream = module(task, "transfer", tmp_path / "spoilt.ckpt")
    before = weights_of(downstream.network)
    with pytest.raises(InputError, match=r"model\.init_from: .*spoilt\.ckpt does not fit the network: .*e[39]\.conv"):
        downstream.load_initial_weights()
    assert all(torch.equal(value, before[name]) for name, value in downstream.network.state_dict().items())


@pytest.mark.parametrize("task", TASKS)
def test_a_deeper_or_wider_colouriser_does_not_fit(task, tmp_path):
    for change in ({"depth": 6}, {"width": 8}):
        state = Generator(**NOISE | SIZE | change).state_dict()
        torch.save({"state_dict": {f"generator.{name}": value for name, value in state.items()}}, tmp_path / "x.ckpt")
        with pytest.raises(InputError, match=r"does not fit .*set unet\.width and unet\.depth to the colouriser's"):
            module(task, "transfer", tmp_path / "x.ckpt").load_initial_weights()


def test_only_the_decoder_of_a_colouriser_is_left_behind(colouriser, tmp_path):
    """Not whatever begins with d."""
    path, _ = colouriser
    state = torch.load(path, weights_only=True)["state_dict"] | {"generator.dense.weight": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"1 unexpected keys: dense\.weight"):
        module("classification", "transfer", tmp_path / "other.ckpt").load_initial_weights()


@pytest.mark.parametrize("task", TASKS)
def test_a_stage_that_goes_on_takes_everything(task, tmp_path, caplog):
    torch.manual_seed(1)
    first = module(task)
    torch.save({"state_dict": {f"network.{k}": v for k, v in first.network.state_dict().items()}}, tmp_path / "1.ckpt")
    torch.manual_seed(2)
    second = module(task, "transfer", tmp_path / "1.ckpt")
    with caplog.at_level(logging.INFO, logger="reprise"):
        second.load_initial_weights()
    theirs = first.network.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in second.network.state_dict().items())
    assert caplog.messages[0].endswith("random: none")
    other = module(TASKS[1 - TASKS.index(task)], "transfer", tmp_path / "1.ckpt")
    with pytest.raises(InputError, match="does not fit the network"):  # the other task's checkpoint
        other.load_initial_weights()


def test_a_file_of_other_weights_under_the_names_of_the_layers_does_too(tmp_path):
    torch.manual_seed(3)
    theirs = {k: v for k, v in Classifier(7, hidden=8, dropout=0.5, **SIZE).state_dict().items() if "head" not in k}
    torch.save(theirs, tmp_path / "encoder.pt")
    downstream = module("classification", "transfer", tmp_path / "encoder.pt")
    downstream.load_initial_weights()
    assert all(torch.equal(downstream.network.state_dict()[name], value) for name, value in theirs.items())
    torch.save({**theirs, "fc.weight": torch.zeros(3)}, tmp_path / "more.pt")
    with pytest.raises(InputError, match=r"1 unexpected keys: fc\.weight"):
        module("classification", "transfer", tmp_path / "more.pt").load_initial_weights()


@pytest.mark.parametrize("task", TASKS)
def test_no_weights_where_some_are_meant_is_an_error_and_so_are_some_where_none_are_meant(task, tmp_path):
    with pytest.raises(InputError, match=r"name the colouriser's checkpoint by stages\.<stage>\.model\.init_from=<"):
        module(task, "transfer").load_initial_weights()
    with pytest.raises(InputError, match=r"model\.init=scratch takes no weights, but model\.init_from=x\.ckpt"):
        module(task, "scratch", Path("x.ckpt"))
    with pytest.raises(InputError, match=r"model\.init_from: there is no weights file .*gone\.ckpt"):
        module(task, "transfer", tmp_path / "gone.ckpt").load_initial_weights()


# ---- phases ------------------------------------------------------------------------------------------


def steps(downstream, batches: list[dict[str, Tensor]], monkeypatch) -> None:
    """Training steps without a trainer."""
    monkeypatch.setattr(type(downstream), "log", lambda *args, **kwargs: None)
    optimizer = downstream.configure_optimizers()
    downstream.train()
    for place, batch in enumerate(batches):
        optimizer.zero_grad()
        downstream.training_step(batch, place).backward()
        optimizer.step()


def batch_of(task: str, seed: int = 0, images: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    if task == "classification":
        return {"image": image, "label": (torch.rand(images, 3, generator=generator) < 0.4).float()}
    mask = torch.randint(0, 4, (images, 32, 32), generator=generator)
    mask[:, 0] = 255
    return {"image": image, "mask": mask}


@pytest.mark.parametrize("task", TASKS)
def test_a_frozen_phase_changes_the_new_layers_alone_and_a_free_one_all(task, colouriser, monkeypatch):
    path, _ = colouriser
    for freeze in (True, False):
        downstream = module(task, "transfer", path, freeze=freeze)
        downstream.load_initial_weights()
        before = weights_of(downstream.network)
        steps(downstream, [batch_of(task, seed) for seed in range(3)], monkeypatch)
        for name, parameter in downstream.network.named_parameters():
            new = name.startswith(("head.", "out."))
            assert torch.equal(parameter, before[name]) == (freeze and not new), name
        trained = {id(p) for group in downstream.configure_optimizers().param_groups for p in group["params"]}
        assert trained == {
            id(p) for n, p in downstream.network.named_parameters() if not freeze or n.startswith(("head.", "out."))
        }


@pytest.mark.parametrize("task", TASKS)
def test_batch_norm_uses_the_batch_in_training_in_evaluation_and_where_it_is_frozen(task, colouriser):
    """Trap 3: with the running statistics of a short training the numbers are others; and what an image gets
    depends on its neighbours, so that the size of a test batch is part of the protocol."""
    path, _ = colouriser
    images = batch_of(task)["image"]
    for norm_eval, depends in (("batch", True), ("running", False)):
        for freeze in (True, False):
            downstream = module(task, "transfer", path, freeze=freeze, norm_eval=norm_eval)
            downstream.load_initial_weights()
            if task == "segmentation":
                downstream.network.keep_dropout(False)
            with torch.no_grad():
                alone, together = downstream.eval()(images[:1]), downstream(images)[:1]
                assert torch.allclose(alone, together, atol=1e-5) != depends
                if depends and task == "segmentation":  # without dropout and head there is no other difference
                    for block in (m for m in downstream.modules() if isinstance(m, nn.Dropout)):
                        block.p = 0.0
                    assert torch.allclose(downstream.train()(images)[:1], together, atol=1e-5)


def test_a_classifier_predicts_by_the_statistics_of_its_training():
    """One picture is a batch in prediction: by its own statistics it would be judged otherwise than in a test."""
    downstream = module("classification").eval()
    images = batch_of("classification")["image"]
    steady = module("classification", norm_eval="running").eval()
    steady.network.load_state_dict(downstream.network.state_dict())
    with torch.no_grad():
        by_batch, expected = downstream(images), steady(images)
        with pytest.warns(UserWarning, match="have counted 0 training batches, too few"):
            downstream.on_predict_start()
        assert torch.equal(downstream(images), expected) and not torch.allclose(by_batch, expected, atol=1e-5)
        assert torch.allclose(downstream(images[:1]), expected[:1], atol=1e-6)
    downstream.network.e2.norm.num_batches_tracked += 459  # 0.99 ** 459 < 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        downstream.on_predict_start()


def test_an_evaluation_leaves_the_running_statistics_alone():
    downstream = module("segmentation").eval()
    before = weights_of(downstream.network)
    downstream(batch_of("segmentation")["image"])
    assert all(torch.equal(value, before[name]) for name, value in downstream.network.state_dict().items())


class Alone:
    """A trainer of one process."""

    world_size, global_rank = 1, 0


def test_the_seed_of_the_noise_is_the_config_s():
    network = Segmenter(3, **NOISE | SIZE)
    images = batch_of("segmentation")["image"][:1]
    judged = []
    with torch.no_grad():
        for seed in (0, 0, 1):
            downstream = SegmenterModule(network, ADAM, 3, "scratch", None, freeze=False, noise_seed=seed).eval()
            downstream._trainer = Alone()
            with downstream.own_noise(0):
                judged.append(downstream(images))
    assert torch.equal(judged[0], judged[1]) and not torch.equal(judged[0], judged[2])


def test_the_decoder_s_dropout_stays_on_in_evaluation_and_judges_alike_each_time():
    downstream = module("segmentation").eval()
    downstream._trainer = Alone()
    images = batch_of("segmentation")["image"][:1]
    with torch.no_grad():
        assert not torch.equal(downstream(images), downstream(images))
        judged = []
        for batch_idx in (0, 0, 1):
            torch.rand(batch_idx + len(judged))  # whatever was drawn before
            state = torch.get_rng_state()
            with downstream.own_noise(batch_idx):
                judged.append(downstream(images))
            assert torch.equal(torch.get_rng_state(), state)  # and nothing that is drawn afterwards changes
        assert torch.equal(judged[0], judged[1]) and not torch.equal(judged[0], judged[2])
        downstream.network.keep_dropout(False)
        assert torch.equal(downstream(images), downstream(images))


def test_the_classifier_has_no_noise_in_evaluation():
    downstream = module("classification").eval()
    images = batch_of("classification")["image"]
    assert torch.equal(downstream(images), downstream(images))


@pytest.mark.parametrize("task", TASKS)
def test_only_the_lightness_is_seen(task):
    downstream = module(task).eval()
    if task == "segmentation":
        downstream.network.keep_dropout(False)
    images = batch_of(task)["image"]
    assert downstream.network.e1.conv.in_channels == 1
    assert torch.equal(downstream(images), downstream.network(lightness(images)))


# ---- losses and the artefact -------------------------------------------------------------------------


def test_the_classification_loss_is_the_mean_binary_cross_entropy(monkeypatch):
    downstream = module("classification")
    monkeypatch.setattr(type(downstream), "log", lambda *args, **kwargs: None)
    batch = batch_of("classification")
    downstream.eval()
    logits = downstream(batch["image"]).tolist()
    total = 0.0
    for row, labels in zip(logits, batch["label"].tolist(), strict=True):
        for z, y in zip(row, labels, strict=True):
            p = 1 / (1 + math.exp(-z))
            total -= y * math.log(p) + (1 - y) * math.log(1 - p)
    assert float(downstream.training_step(batch, 0).detach()) == pytest.approx(total / 18, rel=1e-5)


def test_the_segmentation_loss_is_the_mean_over_the_pixels_that_are_not_void(monkeypatch):
    downstream = module("segmentation")
    monkeypatch.setattr(type(downstream), "log", lambda *args, **kwargs: None)
    downstream.eval().network.keep_dropout(False)
    batch = batch_of("segmentation", images=2)
    batch["mask"][1] = 255  # an image that nobody labelled
    logits = downstream(batch["image"]).detach().double().numpy()
    losses = []
    for image, mask in zip(logits, batch["mask"].numpy(), strict=True):
        for y in range(32):
            for x in range(32):
                if mask[y, x] != 255:
                    z = image[:, y, x]
                    losses.append(math.log(sum(math.exp(v) for v in z)) - z[mask[y, x]])
    assert len(losses) == 31 * 32
    assert float(downstream.training_step(batch, 0).detach()) == pytest.approx(np.mean(losses), rel=1e-5)


def keras_mean_iou(truth: np.ndarray, prediction: np.ndarray, classes: int) -> float:
    """tf.keras.metrics.MeanIoU.update_state and result, written out."""
    matrix = np.zeros((classes, classes))
    for t, p in zip(truth.flatten().astype(np.int64), prediction.flatten().astype(np.int64), strict=True):
        matrix[t, p] += 1
    scores = []
    for c in range(classes):
        union = matrix[c].sum() + matrix[:, c].sum() - matrix[c, c]
        if union:
            scores.append(matrix[c, c] / union)
    return 100 * float(np.mean(scores))


@pytest.mark.parametrize("sure", [False, True])
def test_keras_mean_iou_of_probabilities_is_the_artefact_it_is(sure):
    planes = 21
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, planes, (2, 6, 6), generator=generator)
    logits = torch.randn(2, planes, 6, 6, generator=generator)
    if sure:
        logits = logits * 1000  # probabilities of exactly 1, most of them wrong
    metric = KerasMeanIoURaw(planes)
    for image in range(2):
        metric.update(logits[image : image + 1].softmax(dim=1), target[image : image + 1])
    truth = torch.nn.functional.one_hot(target, planes).numpy()
    expected = keras_mean_iou(truth, logits.softmax(dim=1).movedim(1, -1).numpy(), planes)
    values = metric.compute()
    assert float(values["keras_miou_raw"]) == pytest.approx(expected, rel=1e-5)
    assert float(values["floor_keras_miou_raw"]) == pytest.approx(100 * (20 / 21) / 2, rel=1e-5)


def test_keras_mean_iou_does_not_tell_a_perfect_answer_from_a_constant_one():
    planes = 21
    target = torch.randint(0, planes, (1, 8, 8), generator=torch.Generator().manual_seed(1))
    target[0, 0] = 255  # left out
    perfect = 20 * torch.nn.functional.one_hot(target.clamp(max=planes - 1), planes).float().movedim(-1, 1)
    for logits in (perfect - 10, torch.zeros_like(perfect)):
        metric = KerasMeanIoURaw(planes)
        metric.update(logits.softmax(dim=1).clamp(max=0.999), target)
        assert float(metric.compute()["keras_miou_raw"]) == pytest.approx(100 * (20 / 21) / 2, rel=1e-5)


# ---- arms --------------------------------------------------------------------------------------------

EXPERIMENTS = [name for name in group_choices("experiment") if name.startswith("gan_colorization_")]
VARIANTS = [name for name in group_choices("variant") if name.startswith("gan_colorization_")]
ARMS = ["none", *(f"gan_colorization_{arm}" for arm in ("scratch", "frozen_random", "l1_only", "no_freeze"))]


@cache
def stages(experiment: str, variant: str) -> dict[str, dict]:
    """The resolved config of each downstream stage of an arm."""
    words = [f"experiment={experiment}", f"variant={variant}", "paths.run_dir=unused", "data.root=somewhere"]
    config = OmegaConf.to_container(compose_config(words))
    if config["only_stages"] == ["pretext"]:
        config["only_stages"] = None
    resolved = {s.name: resolve_stage(config, s) for s in stages_of(config, Path("unused")) if s.name != "pretext"}
    assert all(name.startswith(tuple(TASKS)) for name in resolved)
    return resolved


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("task", TASKS)
def test_no_arm_trains_longer_than_another(experiment, task):
    """Trap 7: the frozen phase is a part of the training, not an extra."""
    epochs = set()
    # The schedule is the experiment's, the variants are one file each for all of them.
    for variant in ["none", *VARIANTS] if experiment == "gan_colorization_voc" else ARMS:
        done = 0
        for name, stage in stages(experiment, variant).items():
            if name.startswith(task):
                # Each phase goes on in the order of the images where the one before it stopped.
                assert stage["data"]["epochs_before"] == done
                done += stage["trainer"]["max_epochs"]
        epochs.add(done)
    assert len(epochs) == 1 and epochs != {0}


def flat(node, prefix=""):
    if isinstance(node, dict):
        return {k: v for key, value in node.items() for k, v in flat(value, f"{prefix}{key}.").items()}
    return {prefix[:-1]: node}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("variant", ARMS[1:])
def test_arms_differ_in_nothing_but_their_first_weights_and_their_phases(experiment, variant):
    method, arm = stages(experiment, "none"), stages(experiment, variant)
    phases = {"stage_dir", "trainer.max_epochs", "data.epochs_before", "data.folder", "model.freeze"}
    start = {"model.init", "model.init_from", "model.optimizer.lr"}
    for name, stage in arm.items():
        here, there = flat(stage["model"], "model.") | flat(stage["data"], "data."), {}
        there = flat(method[name]["model"], "model.") | flat(method[name]["data"], "data.")
        assert set(here) == set(there)
        different = {key for key in here if here[key] != there[key]}
        assert different <= phases | start
        differing_trainer = {k for k, v in flat(stage["trainer"]).items() if flat(method[name]["trainer"])[k] != v}
        assert differing_trainer <= {"max_epochs"}
    if variant.endswith("scratch"):
        assert all(stage["model"]["init"] == "scratch" and not stage["model"]["freeze"] for stage in arm.values())
    if variant.endswith("frozen_random"):
        assert [stage["model"]["freeze"] for stage in arm.values()] == [True, False, True, False]
        firsts = [stage["model"] for name, stage in arm.items() if name.endswith("frozen")]
        assert all(model["init"] == "scratch" and model["init_from"] is None for model in firsts)
    if variant.endswith("no_freeze"):
        assert not any(stage["model"]["freeze"] for stage in arm.values())


def test_scratch_and_the_frozen_phase_of_random_weights_begin_with_the_same_weights():
    torch.manual_seed(7)
    one = module("segmentation")
    torch.manual_seed(7)
    other = module("segmentation", freeze=True)
    ours = other.network.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in one.network.state_dict().items())


def test_the_paper_s_schedule_is_that_of_its_section_4():
    method, scratch = stages("gan_colorization_voc", "none"), stages("gan_colorization_voc", "gan_colorization_scratch")

    def pace(arm):
        return {
            n: (s["trainer"]["max_epochs"], s["model"]["optimizer"]["lr"], s["data"]["batch_size"])
            for n, s in arm.items()
        }

    assert pace(method) == {
        "classification_frozen": (3, 3e-4, 32),
        "classification": (1, 5e-5, 32),
        "segmentation_frozen": (1, 3e-4, 16),
        "segmentation": (5, 5e-5, 16),
    }
    assert pace(scratch) == {"classification": (4, 3e-4, 32), "segmentation": (6, 3e-4, 16)}
    assert all(stage["data"]["eval_batch_size"] == (32 if "class" in n else 1) for n, stage in method.items())


def config_of(experiment: str, *words: str) -> dict:
    words = (f"experiment={experiment}", "paths.run_dir=unused", "data.root=somewhere", *words)
    return OmegaConf.to_container(compose_config(words))


def test_the_pretext_is_trained_as_published():
    config = config_of("gan_colorization_coco")
    pretext = resolve_stage(config, Stage("pretext", Path("unused")))
    model = pretext["model"]
    assert model["gan"] is True and model["l1_weight"] == 100.0
    assert model["discriminator"]["variant"] == "patch70"
    assert model["generator"]["dropout"] == 0.5 and model["generator"]["dropout_in_evaluation"] is True
    assert model["generator"]["norm_eval"] == "batch"
    assert (model["generator"]["width"], model["generator"]["depth"], pretext["data"]["side"]) == (64, 8, 256)
    for optimizer in (model["optimizer"], model["discriminator_optimizer"]):
        assert optimizer["_target_"] == "torch.optim.Adam"
        assert (optimizer["lr"], optimizer["betas"]) == (2e-4, [0.5, 0.999])
    assert (pretext["data"]["batch_size"], pretext["trainer"]["max_epochs"]) == (32, 20)


@pytest.mark.parametrize(("labels", "fraction"), [("labels10", 0.1), ("labels50", 0.5)])
def test_both_arms_of_a_share_of_the_labels_have_that_share_in_every_stage(labels, fraction):
    for variant in (labels, f"scratch_{labels}"):
        arm = stages("gan_colorization_voc", f"gan_colorization_{variant}")
        assert [stage["data"]["label_fraction"] for stage in arm.values()] == [fraction] * (
            2 if variant.startswith("scratch") else 4
        )
    assert all(s["data"]["label_fraction"] == 1 for s in stages("gan_colorization_voc", "none").values())


@pytest.mark.parametrize(
    ("variant", "key", "value"),
    [("l1_only", ("gan",), False), ("patch142", ("discriminator", "variant"), "patch142")],
)
def test_an_arm_with_a_colouriser_of_its_own_trains_it_or_is_refused(variant, key, value, tmp_path):
    """Where the colouriser comes from elsewhere, the arm would be the method under another name."""
    words = f"variant=gan_colorization_{variant}"
    config = config_of("gan_colorization_demo", words)
    first, *others = stages_of(config, tmp_path)
    assert first.name == "pretext"
    found = resolve_stage(config, first)["model"]
    for part in key:
        found = found[part]
    assert found == value
    starts = {stage.name: resolve_stage(config, stage)["model"]["init_from"] for stage in others}
    assert starts["classification_frozen"] == starts["segmentation_frozen"] == "${stage:pretext}"

    config = config_of("gan_colorization_voc", words, "pretext=colouriser.ckpt")
    first = stages_of(config, tmp_path)[0]
    assert first.name == "classification_frozen"
    with pytest.raises(InputError, match="checkpoint of stage 'pretext', which this run does not have"):
        fill_stage_checkpoints(resolve_stage(config, first)["model"], tmp_path, "stages.classification_frozen.model")
    # Its colouriser's checkpoint and its name, as the docs have it.
    config = config_of("gan_colorization_voc", "pretext=colouriser.ckpt", f"variant_name={variant}")
    assert config["variant_name"] == variant
    assert resolve_stage(config, first)["model"]["init_from"] == "colouriser.ckpt"
