"""A run is a list of stages: what each one's config is, and where its files go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from runs.composition import CONFIG_DIR, changed_values, to_plain
from runs.errors import InputError, did_you_mean
from runs.folders import RESULT_FILE, last_checkpoint


@dataclass(frozen=True)
class Stage:
    """One fit of a run. `name` is empty for the only stage of a run without a stage list."""

    name: str
    folder: Path

    @property
    def is_finished(self) -> bool:
        """A stage is finished when its result is written: the last thing it does."""
        return (self.folder / RESULT_FILE).is_file()


def stages_of(config: Mapping[str, Any], run_dir: Path) -> list[Stage]:
    """The stages of a run in order.

    Raises:
        InputError: if `only_stages` names one that the experiment does not have.
    """
    listed = list(config.get("stages") or {})
    only = config.get("only_stages")
    if only is not None:
        only = [only] if isinstance(only, str) else only
        for name in only:
            if name not in listed:
                raise InputError(f"only_stages: this experiment has no stage '{name}': {did_you_mean(name, listed)}")
        listed = [name for name in listed if name in only]
    if not listed:
        return [Stage("", run_dir)]
    return [Stage(name, run_dir / name) for name in listed]


def stage_config(config: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """What a stage runs with: its own part merged over the common config, nothing resolved yet."""
    own = (config.get("stages") or {}).get(stage.name, {})
    merged = _merge({key: value for key, value in config.items() if key not in ("stages", "only_stages")}, own)
    merged["stage_dir"] = str(stage.folder)
    return merged


def resolve_stage(config: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """The stage's config with every interpolation filled in but `${stage:<name>}`.

    Raises:
        InputError: if a value is missing or an interpolation leads nowhere.
    """
    return to_plain(OmegaConf.create(stage_config(config, stage)))


def fill_stage_checkpoints(node: Any, run_dir: Path, key: str) -> Any:
    """Puts the checkpoint of a finished stage for each `${stage:<name>}` in a resolved config.

    Args:
        node: a part of the config.
        run_dir: the run's folder.
        key: of the part, as one types it.

    Raises:
        InputError: if the stage that it refers to has no checkpoint in this run.
    """
    if isinstance(node, dict):
        return {name: fill_stage_checkpoints(value, run_dir, f"{key}.{name}") for name, value in node.items()}
    if isinstance(node, list):
        return [fill_stage_checkpoints(value, run_dir, key) for value in node]
    if isinstance(node, str) and node.startswith("${stage:") and node.endswith("}"):
        name = node.removeprefix("${stage:").removesuffix("}")
        checkpoint = last_checkpoint(run_dir / name)
        if checkpoint is None:
            raise InputError(
                f"{key} is the checkpoint of stage '{name}', which this run does not have: run that stage too, or give "
                f"a checkpoint, {key}=<path>"
            )
        return str(checkpoint)
    return node


def let_command_line_win(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Puts what the command line sets for the whole run into every stage that sets it too.

    A stage's own values stand over the common ones; a value that the user typed stands over both,
    or `trainer.max_epochs=1` would do nothing to an experiment whose stages set it. A stage that
    does not set the value itself inherits it, or has another class that does not know it.
    """
    stages = {name: dict(own or {}) for name, own in (config.get("stages") or {}).items()}
    for key in changed_values(overrides):
        if key.startswith(("stages.", "hydra.")) or (CONFIG_DIR / key).is_dir():
            continue
        path = key.split(".")
        typed = _value_at(config, path)
        for name, own in stages.items():
            stages[name] = _replaced(own, path, typed)
    return {**config, "stages": stages}


def _value_at(node: Any, path: Sequence[str]) -> Any:
    for part in path:
        node = node[part]
    return node


def _replaced(node: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """The node with another value at the path, if it has one there."""
    head, *rest = path
    if head not in node:
        return dict(node)
    if not rest:
        return {**node, head: value}
    return {**node, head: _replaced(node[head], rest, value)} if isinstance(node[head], Mapping) else dict(node)


def _merge(common: Any, own: Any) -> Any:
    """Deep merge; an object of another class replaces the common one instead of inheriting its arguments."""
    if not (isinstance(common, Mapping) and isinstance(own, Mapping)):
        return own
    if "_target_" in own and own["_target_"] != common.get("_target_", own["_target_"]):
        return dict(own)
    return {**common, **{key: _merge(common.get(key), value) for key, value in own.items()}}
