"""Composes the config of a run with Hydra, and turns its complaints into sentences.

Nothing here imports torch or Lightning: a typo must be answered at once.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from runs.errors import InputError, did_you_mean

PROJECT_ROOT = Path(__file__).resolve().parent.parent
CONFIG_DIR = PROJECT_ROOT / "conf"


def register_resolvers() -> None:
    """`${stage:<name>}` stands for the checkpoint of a finished stage.

    It is filled in when its stage is about to start (`runs.stages`); until then resolving a
    config leaves it as it is.
    """
    OmegaConf.register_new_resolver("stage", lambda name: f"${{stage:{name}}}", replace=True)


def compose_config(overrides: Sequence[str] = (), config_name: str = "train") -> DictConfig:
    """The config that the command line would give, composed in this process.

    Raises:
        InputError: for an unknown choice, key or malformed override.
    """
    register_resolvers()
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose(config_name, overrides=list(overrides))
    except Exception as error:
        raise explain(error, overrides, config_name) from error


def register_base_config(name: str, content: dict[str, Any], defaults: Sequence[Any]) -> None:
    """Makes a config that came out of a checkpoint the primary config of the next composition."""
    register_resolvers()
    ConfigStore.instance().store(name=name, node=OmegaConf.create({**content, "defaults": list(defaults)}))


def to_plain(config: DictConfig) -> dict[str, Any]:
    """The resolved config as plain containers, without Hydra's own part.

    Raises:
        InputError: if a mandatory value is not set or an interpolation leads nowhere.
    """
    register_resolvers()
    without_hydra = config.copy()
    OmegaConf.set_struct(without_hydra, False)
    without_hydra.pop("hydra", None)
    try:
        plain = OmegaConf.to_container(without_hydra, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(plain, dict)
    return plain


def changed_values(overrides: Sequence[str]) -> list[str]:
    """The dotted keys that these overrides set (`trainer.max_epochs`), group choices left out."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [o.key_or_group for o in parsed if "/" not in o.key_or_group and "." in o.key_or_group and not o.is_delete()]


def group_choices(group: str) -> list[str]:
    """The options of one config group, in alphabetical order."""
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def explain(error: Exception, overrides: Sequence[str] = (), config_name: str = "train") -> Exception:
    """The sentence for an error of Hydra's or OmegaConf's; any other error comes back as it is."""
    if isinstance(error, MissingConfigException):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return InputError(f"there is no {group or 'config'} '{option}': {did_you_mean(option, error.options or [])}")
    if isinstance(error, OverrideParseException):
        return InputError(
            f"the override '{error.override}' cannot be read: write key=value, for example trainer.max_epochs=3 "
            "(quote values with spaces or commas: 'name=\"a, b\"')"
        )
    if isinstance(error, MissingMandatoryValue):
        key = error.full_key or "a value"
        return InputError(f"{key} is not set: add {key}=<value> to the command")
    if isinstance(error, InterpolationKeyError):
        return InputError(f"{error.full_key}: {str(error).splitlines()[0]}")
    message = str(error)
    cause = error.__cause__
    unknown = re.search(r"Could not override '([^']+)'\.", message)
    if unknown:
        return _unknown_key(unknown.group(1), overrides, config_name)
    if isinstance(error, ConfigCompositionException) and isinstance(cause, ConfigAttributeError):
        return _unknown_key(str(cause.full_key), overrides, config_name)
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        return InputError(" ".join(message.split()))
    return error


def _unknown_key(key: str, overrides: Sequence[str], config_name: str) -> InputError:
    """Looks the key up in the config that the other overrides give, to name its neighbours."""
    others = [o for o in overrides if not o.lstrip("+~").startswith((f"{key}=", f"{key}@"))]
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            config = compose(config_name, overrides=others)
        known = list(_dotted_keys(OmegaConf.to_container(config, resolve=False)))
    except Exception:
        known = []
    groups = [path.name for path in CONFIG_DIR.iterdir() if path.is_dir()]
    parent, _, last = key.rpartition(".")
    twins = [k for k in known if k.rpartition(".")[2] == last]
    hint = f"did you mean {' or '.join(twins[:3])}?" if twins else did_you_mean(key, [*known, *groups])
    if parent.startswith("stages.") and parent in known:  # a stage's own part of the config holds a few keys only
        hint = f"a stage sets more than its experiment does by a plus, +{key}=<value>; or {hint}"
    return InputError(f"there is no '{key}' in this config: {hint}")


def _dotted_keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            name = f"{prefix}{key}"
            yield name
            yield from _dotted_keys(value, f"{name}.")


def load_yaml(path: Path) -> Any:
    """A YAML file of ours, or None where there is none."""
    return yaml.safe_load(path.read_text()) if path.is_file() else None
