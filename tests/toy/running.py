"""Runs the toy experiment: in this process, or through the doors as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

from runs.checkpoints import evaluation_config
from runs.composition import PROJECT_ROOT, compose_config, register_base_config
from runs.evaluating import evaluate_checkpoint
from runs.training import Command, train_all_stages

TOY = ["experiment=toy_digits", f"hydra.searchpath=[file://{PROJECT_ROOT}/tests/toy/conf]", "trainer=cpu"]
QUIET = "trainer.enable_progress_bar=false"


def train_here(run_dir: Path, *words: str) -> float | None:
    """What `python train.py <words>` does, in this process."""
    config = compose_config([*words, f"paths.run_dir={run_dir}"])
    return train_all_stages(config, Command(list(words)))


def judge_here(checkpoint: Path, run_dir: Path, *words: str) -> dict | None:
    """What `python eval.py ckpt_path=<checkpoint> <words>` does, in this process; None after a prediction."""
    content = {**evaluation_config(checkpoint), "ckpt_path": str(checkpoint)}
    register_base_config("checkpoint", content, ["_self_", "eval"])
    evaluate_checkpoint(compose_config(["trainer=cpu", QUIET, *words, f"paths.run_dir={run_dir}"], "checkpoint"))
    result = run_dir / "result.json"
    return json.loads(result.read_text()) if result.is_file() else None


def train_toy(run_dir: Path, *words: str) -> float | None:
    return train_here(run_dir, *TOY, QUIET, *words)


def door_environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join([str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **extra}


def start_door(door: str, *words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROJECT_ROOT / door), *words],
        env=door_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_door(door: str, *words: str, **environment: str) -> tuple[int, str]:
    process = start_door(door, *words, **environment)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output
