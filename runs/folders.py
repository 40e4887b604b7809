"""The folder of a run: what lies where, and which run a path belongs to.

``<run>/run.yaml`` holds the resolved config and the command's overrides; a folder that has it is a
run. Each stage has its own folder below it (a run without stages is its own stage folder), and a
stage that has a ``result.json`` is finished.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runs.errors import InputError

RUN_FILE = "run.yaml"
RESULT_FILE = "result.json"


@dataclass(frozen=True)
class RunRecord:
    """What `run.yaml` says: the resolved config, the overrides that gave it, the sweep it is part of."""

    config: dict[str, Any]
    overrides: list[str]
    sweep: str | None


def write_run(run_dir: Path, record: RunRecord) -> None:
    """Writes `run.yaml` whole or not at all."""
    run_dir.mkdir(parents=True, exist_ok=True)
    temporary = run_dir / f".{RUN_FILE}.{os.getpid()}"
    temporary.write_text(yaml.safe_dump(vars(record), sort_keys=False))
    temporary.replace(run_dir / RUN_FILE)


def read_run(run_dir: Path) -> RunRecord:
    """Reads `run.yaml` back."""
    return RunRecord(**yaml.safe_load((run_dir / RUN_FILE).read_text()))


def find_run(path: Path) -> Path:
    """The run folder that `path` (the folder itself, or a checkpoint in it) belongs to.

    Raises:
        InputError: if nothing is there, or it is not part of a run.
    """
    path = path.absolute()
    for folder in (path, *path.parents):
        if (folder / RUN_FILE).is_file():
            return folder
    if not path.exists():
        raise InputError(f"ckpt_path={path} does not exist: give a run folder or a checkpoint in one")
    other = "" if path.is_dir() else ": to start a new run from its weights use model.init_from=, to judge it eval.py"
    raise InputError(f"ckpt_path={path} is not part of a run (no {RUN_FILE} there or above){other}")


def last_checkpoint(stage_dir: Path) -> Path | None:
    """The checkpoint that a stage goes on from, or None if it has not written one."""
    path = stage_dir / "checkpoints" / "last.ckpt"
    return path if path.is_file() else None
