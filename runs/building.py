"""Builds the objects of a stage from its config, after checking every value against its class."""

import inspect
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic
import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.loggers import Logger

from runs.errors import InputError, did_you_mean


@dataclass
class Pieces:
    """What a stage runs with."""

    module: pl.LightningModule
    datamodule: pl.LightningDataModule
    callbacks: list[pl.Callback]
    loggers: list[Logger]


def check_config(config: Mapping[str, Any]) -> None:
    """Checks all that a stage will build, and builds nothing.

    Raises:
        InputError: naming the config key, for a missing model or dataset, a class that does not
            exist, an argument it does not have, or a value of the wrong type.
    """
    for group in ("model", "data"):
        if not (config.get(group) or {}).get("_target_"):
            raise InputError(f"no {group} is chosen: pick an experiment, for example experiment=sitar_demo")
    if not isinstance(config["seed"], int) or not 0 <= config["seed"] < 2**32:
        raise InputError(f"seed={config['seed']} must be a whole number from 0 to {2**32 - 1}")
    for group in ("model", "data", "trainer", "callbacks", "logger"):
        check_arguments(config.get(group) or {}, group)
    epochs, steps = config["trainer"].get("max_epochs"), config["trainer"].get("max_steps", -1)
    if epochs is not None and epochs < 1 and not (epochs == -1 and steps > 0):
        raise InputError(
            f"trainer.max_epochs={epochs} must be 1 or more (or -1 beside a trainer.max_steps): "
            "to judge without training use eval.py"
        )


def build_pieces(config: Mapping[str, Any]) -> Pieces:
    """Instantiates datamodule, module, callbacks and loggers of a resolved, checked stage config.

    Raises:
        InputError: whatever a constructor refuses.
    """
    return Pieces(
        datamodule=build(config["data"]),
        module=build(config["model"]),
        callbacks=[build(node) for node in (config.get("callbacks") or {}).values() if node],
        loggers=[build(node) for node in (config.get("logger") or {}).values() if node],
    )


def build_trainer(
    config: Mapping[str, Any], pieces: Pieces, callbacks: list[pl.Callback], **settings: Any
) -> pl.Trainer:
    """The Trainer of a stage. Samplers split the data over ranks themselves, so Lightning must not.

    A module whose evaluation takes gradients says so by `gradients_in_evaluation = True`; it still
    switches them on itself, where it needs them (`torch.enable_grad`).
    """
    _silence_known_noise()
    if not pieces.module.automatic_optimization:
        for key, nothing in (("gradient_clip_val", (None, 0)), ("accumulate_grad_batches", (None, 1))):
            if (value := config["trainer"].get(key)) not in nothing:
                raise InputError(f"trainer.{key}={value} has no effect on a module that steps by itself: leave it out")
    if not config["trainer"].get("enable_progress_bar", True):
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    try:
        return instantiate(
            config["trainer"],
            _convert_="all",
            callbacks=callbacks,
            logger=pieces.loggers or False,
            default_root_dir=config["stage_dir"],
            use_distributed_sampler=False,
            inference_mode=not getattr(pieces.module, "gradients_in_evaluation", False),
            enable_model_summary=False,
            **settings,
        )
    except InstantiationException as error:
        if isinstance(error.__cause__, MisconfigurationException):  # no GPU here, say
            hint = "; trainer=cpu runs anywhere" if config["trainer"].get("accelerator") != "cpu" else ""
            raise InputError(f"trainer: {' '.join(str(error.__cause__).split())}{hint}") from error
        raise


def build(node: Mapping[str, Any]) -> Any:
    """Instantiates one `_target_` node; a constructor's InputError comes through as it is."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, InputError):
            raise cause from None
        raise


def check_arguments(node: Any, path: str) -> None:
    """Compares a config node, and all nodes below it, with the signatures of the classes they name.

    Raises:
        InputError: for a class that does not exist, an argument it does not have or needs and
            does not get, or a value of the wrong type.
    """
    if isinstance(node, list):
        for position, item in enumerate(node):
            check_arguments(item, f"{path}[{position}]")
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        check_arguments(value, f"{path}.{key}")
    if "_target_" not in node:
        return
    target = _find(node["_target_"], path)
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # built-in classes have no signature to check
        return
    hints = _type_hints(target)
    takes_anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {key: value for key, value in node.items() if not (key.startswith("_") and key.endswith("_"))}
    for key, value in given.items():
        if key not in parameters:
            if not takes_anything:
                raise InputError(f"{path} has no argument '{key}': {did_you_mean(key, parameters)}")
        elif not _holds_object(value):
            _check_type(value, hints.get(key), f"{path}.{key}")
    if node.get("_partial_"):
        if inspect.isclass(target) and issubclass(target, torch.optim.Optimizer):
            _try_optimizer(target, given, path)
        return
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if required and name not in given and not node.get("_args_"):
            raise InputError(f"{path}.{name} is not set: add {path}.{name}=<value> to the command")


def _try_optimizer(target: type[torch.optim.Optimizer], settings: Mapping[str, Any], path: str) -> None:
    """Optimisers check their own values, but only once there are weights: here is one."""
    try:
        target([torch.nn.Parameter(torch.zeros(1))], **settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error


def _find(name: str, path: str) -> Any:
    try:
        return get_object(name)
    except Exception as error:
        raise InputError(f"{path}._target_={name} cannot be imported: {error}") from error


def _type_hints(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # hints that only exist for type checkers
        return {}


def _holds_object(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(_holds_object(item) for item in value.values())
    return isinstance(value, list) and any(_holds_object(item) for item in value)


def _check_type(value: Any, hint: Any, path: str) -> None:
    if hint is None:
        return
    try:
        adapter = pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # a type that pydantic knows nothing about
        return
    try:
        adapter.validate_python(value)
    except pydantic.ValidationError as error:
        reasons = list(dict.fromkeys(problem["msg"] for problem in error.errors()))
        raise InputError(f"{path}={value!r} has the wrong type or value: {'; or '.join(reasons)}") from None


def _silence_known_noise() -> None:
    """Advice of Lightning's that does not hold here, or that no user of a run can act on."""
    for message in (
        ".*does not have many workers.*",
        ".*`srun` command is available.*",
        ".*dataloader is not resumable.*",  # ours are: the sampler knows its place
        ".*is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*It is recommended to use `self.log.*sync_dist.*",
        ".*all_gather is deprecated.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*This DataLoader will create .* worker processes.*",
        ".*this fit will run with no optimizer.*",  # a paper without gradients
        ".*Sparse invariant checks are implicitly disabled.*",
        ".*Sparse CSR tensor support is in beta state.*",
    ):
        warnings.filterwarnings("ignore", message)
