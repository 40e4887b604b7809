"""What each stage of a run runs with."""

from pathlib import Path

import pytest

from runs.errors import InputError
from runs.stages import Stage, fill_stage_checkpoints, let_command_line_win, stage_config, stages_of

RUN = Path("run")
CONFIG = {
    "trainer": {"max_epochs": 9, "precision": "32-true"},
    "model": {"_target_": "a.Model", "lr": 1.0, "width": 8},
    "stages": {
        "first": {"trainer": {"max_epochs": 1}, "model": {"lr": 2.0}},
        "second": {"model": {"_target_": "b.Model", "depth": 3, "init_from": "${stage:first}"}},
    },
}


def test_a_stage_is_its_own_part_over_the_common_config():
    merged = stage_config(CONFIG, Stage("first", RUN / "first"))
    assert merged["trainer"] == {"max_epochs": 1, "precision": "32-true"}
    assert merged["model"] == {"_target_": "a.Model", "lr": 2.0, "width": 8}
    assert merged["stage_dir"] == "run/first"
    assert "stages" not in merged


def test_a_stage_with_another_class_does_not_inherit_the_arguments_of_the_common_one():
    model = stage_config(CONFIG, Stage("second", RUN))["model"]
    assert model == {"_target_": "b.Model", "depth": 3, "init_from": "${stage:first}"}


def test_a_run_without_stages_is_one_stage_in_its_own_folder():
    assert stages_of({"stages": {}}, RUN) == [Stage("", RUN)]


def test_only_stages_keeps_the_order_of_the_experiment_and_refuses_strangers():
    config = {**CONFIG, "only_stages": ["second"]}
    assert [stage.name for stage in stages_of(config, RUN)] == ["second"]
    with pytest.raises(InputError, match="no stage 'secnd': did you mean second"):
        stages_of({**CONFIG, "only_stages": ["secnd"]}, RUN)


def test_what_the_command_line_sets_stands_over_every_stage():
    words = ["trainer.max_epochs=9", "model.width=8", "trainer=gpu"]  # as CONFIG has them already
    won = let_command_line_win(CONFIG, words)
    assert won["stages"]["first"]["trainer"] == {"max_epochs": 9}
    assert won["stages"]["first"]["model"] == {"lr": 2.0}
    assert won["stages"]["second"] == CONFIG["stages"]["second"]


def test_what_the_command_line_sets_reaches_a_stage_with_another_class_that_sets_it_too():
    config = {**CONFIG, "stages": {"second": {"model": {"_target_": "b.Model", "depth": 3, "lr": 0.5}}}}
    won = let_command_line_win(config, ["model.lr=1.0", "model.width=8"])
    model = stage_config(won, Stage("second", RUN))["model"]
    assert model == {"_target_": "b.Model", "depth": 3, "lr": 1.0}  # not gone: its class would take its own default


def test_what_the_command_line_sets_for_one_stage_leaves_the_others_alone():
    assert let_command_line_win(CONFIG, ["stages.first.trainer.max_epochs=5"])["stages"] == CONFIG["stages"]


def test_a_finished_stage_stands_for_its_checkpoint(tmp_path):
    node = {"model": {"init_from": "${stage:first}", "other": [1, "${stage:first}"]}}
    key = r"stages\.b\.model\.init_from"
    with pytest.raises(InputError, match=f"{key} is the checkpoint of stage 'first'.* {key}=<path>"):
        fill_stage_checkpoints(node, tmp_path, "stages.b")
    checkpoint = tmp_path / "first" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    filled = fill_stage_checkpoints(node, tmp_path, "stages.b")
    assert filled == {"model": {"init_from": str(checkpoint), "other": [1, str(checkpoint)]}}
