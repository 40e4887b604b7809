"""The loggers whose own behaviour does not fit a run that can be resumed and has no keyboard."""

import csv
import io
import netrc
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from runs.atomic_files import write_atomically


class MetricsCSV(Logger):
    """`metrics.csv` in the stage's folder: a row for each step that logged something.

    Lightning's own CSVLogger deletes the file of an earlier process; this one goes on in it. Rows
    that a broken run wrote after its last checkpoint are dropped when the resumed run reaches
    their step again. The file is always whole.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._rows = _read_rows(self.path)
        self._resuming = bool(self._rows)

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: `run.yaml` holds the config already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = step if step is not None else len(self._rows)
        if self._resuming:
            self._rows = [row for row in self._rows if row["step"] < step]
            self._resuming = False
        self._rows.append({"step": step, **{name: float(value) for name, value in metrics.items()}})

    @rank_zero_only
    def save(self) -> None:
        if not self._rows:
            return
        columns = ["step", *sorted({name for row in self._rows for name in row} - {"step"})]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomically(self.path, lambda file: file.write(text.getvalue().encode()))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self.save()

    def finalize(self, status: str) -> None:
        self.save()


def _read_rows(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return [{**row, "step": int(row["step"])} for row in rows]


def wandb_logger(
    folder: str,
    project: str,
    entity: str | None,
    name: str,
    tags: list[str],
    group: str | None,
    mode: Literal["online", "offline", "disabled"] | None,
) -> WandbLogger:
    """A W&B logger that never asks: online where a key is set, offline where none is.

    The run id is kept in the stage's folder, so that a resumed run goes on in the same W&B run.
    """
    mode = mode or os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
    stage_dir = Path(folder)
    stage_dir.mkdir(parents=True, exist_ok=True)
    return WandbLogger(
        save_dir=folder,
        project=project,
        entity=entity,
        name=name,
        tags=tags,
        group=group,
        mode=mode,
        id=_kept_run_id(stage_dir / "wandb_run_id"),
        resume="allow",
    )


def log_final_table(loggers: Sequence[Logger], result: Mapping[str, Any]) -> None:
    """Puts the table at the end of a run into W&B too: metric, this run, floor, paper."""
    paper = (result["paper"].get("metrics") or {}) if result["paper"] else {}
    rows = [[k, v, result["floors"].get(k.partition("/")[2]), paper.get(k)] for k, v in result["metrics"].items()]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table("result", columns=["metric", "this run", "floor", "paper"], data=rows)


def close_loggers(loggers: Sequence[Logger]) -> None:
    """Ends a stage's loggers, so that the next stage or job of this process opens its own."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)


def _kept_run_id(path: Path) -> str:
    if not path.is_file():
        path.write_text(secrets.token_hex(4))  # the form of W&B's own ids
    return path.read_text().strip()
