"""Composing a config, and the sentences for what cannot be composed."""

import subprocess
import sys
import time

import pytest

from runs.building import check_config
from runs.composition import PROJECT_ROOT, compose_config, group_choices, to_plain
from runs.errors import InputError
from runs.stages import resolve_stage, stages_of

MISSING = {"data.root": "somewhere"}


def experiment_config(name: str, *overrides: str) -> dict:
    from omegaconf import OmegaConf

    config = compose_config([f"experiment={name}", "paths.run_dir=unused", "data.root=somewhere", *overrides])
    return OmegaConf.to_container(config)


@pytest.mark.parametrize("name", group_choices("experiment"))
def test_every_experiment_builds_from_values_of_the_right_type(name, tmp_path):
    config = experiment_config(name)
    assert config["name"] == name
    for stage in stages_of(config, tmp_path):
        check_config(resolve_stage(config, stage))


def paper_of(name: str) -> str:
    """The paper that an experiment or a variant belongs to: its name begins with it."""
    papers = [path.parent.name for path in (PROJECT_ROOT / "lightning_modules").glob("*/module.py")]
    return max((paper for paper in papers if name.startswith(f"{paper}_")), key=len)


@pytest.mark.parametrize("experiment", group_choices("experiment"))
def test_without_a_variant_a_row_has_no_name(experiment):
    assert experiment_config(experiment, "variant=none")["variant_name"] is None


@pytest.mark.parametrize("variant", [name for name in group_choices("variant") if name != "none"])
def test_every_variant_builds_with_an_experiment_of_its_paper_and_names_its_row(variant, tmp_path):
    paper = paper_of(variant)
    experiment = next(name for name in group_choices("experiment") if paper_of(name) == paper)
    config = experiment_config(experiment, f"variant={variant}")
    for stage in stages_of(config, tmp_path):
        check_config(resolve_stage(config, stage))
    assert config["variant_name"] == variant.removeprefix(f"{paper}_")


@pytest.mark.parametrize("group", ["trainer", "logger", "debug", "launcher", "sweep", "callbacks"])
def test_every_choice_of_the_other_groups_composes(group):
    for choice in group_choices(group):
        compose_config([f"{group}={choice}"])


def test_unknown_experiment_names_the_nearest():
    with pytest.raises(InputError, match=r"no experiment 'sitar_ucf11': did you mean .*sitar_ucf101"):
        compose_config(["experiment=sitar_ucf11"])


def test_unknown_option_of_a_group_names_the_options():
    with pytest.raises(InputError, match=r"no trainer 'tpu': (did you mean|known are) .*gpu"):
        compose_config(["trainer=tpu"])


@pytest.mark.parametrize(
    ("override", "nearest"),
    [("trainer.max_epoch=3", "trainer.max_epochs"), ("model.gama=1", "model.gamma"), ("sed=3", "seed")],
)
def test_unknown_key_names_the_nearest(override, nearest):
    with pytest.raises(InputError, match=f"there is no '{override.partition('=')[0]}' .*{nearest}"):
        compose_config([override])


def test_key_under_another_parent_is_pointed_to_where_it_is():
    with pytest.raises(InputError, match=r"there is no 'data.temperature' .*did you mean model.temperature"):
        compose_config(["data.temperature=1"])


def test_key_whose_first_part_is_wrong_is_pointed_to_where_it_is():
    with pytest.raises(InputError, match=r"no 'encoder\.pretrained' .*did you mean .*\.encoder\.pretrained"):
        compose_config(["experiment=isim_voc12", "encoder.pretrained=false"])


def test_a_key_that_a_stage_does_not_set_is_added_by_a_plus():
    with pytest.raises(InputError, match=r"a plus, \+stages\.semi\.trainer\.max_steps=<value>"):
        compose_config(["experiment=sitar_demo", "stages.semi.trainer.max_steps=3"])


def test_malformed_override_is_quoted():
    with pytest.raises(InputError, match="'a b' cannot be read"):
        compose_config(["a b"])


def test_missing_mandatory_value_names_its_key():
    with pytest.raises(InputError, match=r"data\.root is not set: add data\.root=<value>"):
        to_plain(compose_config(["experiment=sitar_ucf101", "paths.run_dir=unused", "trainer.max_epochs=1"]))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.batch_size=abc", r"data\.batch_size='abc' has the wrong type or value: .*integer"),
        ("model.phase=third", r"model\.phase='third' has the wrong type or value: .*'supervised' or 'semi'"),
        ("trainer.max_epochs=[1]", r"trainer\.max_epochs=\[1\] has the wrong type"),
        ("+model.gama=1", r"model has no argument 'gama': did you mean gamma"),
        ("model._target_=lightning_modules.sitar.Nothing", r"model\._target_=.* cannot be imported"),
    ],
)
def test_value_that_its_class_does_not_take_is_named(override, sentence, tmp_path):
    config = experiment_config("sitar_demo", "trainer.max_epochs=1", override)
    config["stages"] = {}
    with pytest.raises(InputError, match=sentence):
        for stage in stages_of(config, tmp_path):
            check_config(resolve_stage(config, stage))


def test_help_lists_the_experiments_without_importing_torch():
    code = (
        "import sys, runs.command_line; sys.argv = ['train.py', '--help']\n"
        "from train import train\n"
        "try: runs.command_line.open_train_door(train)\n"
        "finally: print('torch' in sys.modules)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    print(f"--help took {time.perf_counter() - started:.2f} s")
    for name in group_choices("experiment"):
        assert name in done.stdout
    assert done.stdout.strip().endswith("False")
