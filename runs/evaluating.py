"""Judges a checkpoint on a test set, predicts with it on the user's own files, or exports it."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from runs.composition import to_plain
from runs.errors import InputError
from runs.processes import processes_to_start
from runs.run_log import log_to, say


def evaluate_checkpoint(config: DictConfig) -> None:
    """The job of eval.py: `config` is the checkpoint's own with the command line's changes.

    Raises:
        InputError: if the mode is unknown or there is nothing to predict on.
    """
    if config.mode not in ("test", "predict", "export"):
        raise InputError(f"mode={config.mode} is unknown: mode=test, mode=predict or mode=export")
    from lightning_fabric.utilities.seed import seed_everything

    from runs import results
    from runs.building import build_pieces, build_trainer, check_config
    from runs.loggers import close_loggers

    resolved = to_plain(config)
    if processes_to_start(resolved["trainer"]):
        raise InputError("eval.py judges in one process: leave trainer= out, or take trainer=cpu or trainer=gpu")
    check_config(resolved)
    folder = Path(resolved["stage_dir"])
    log_to(folder)
    seed_everything(resolved["seed"], workers=True, verbose=False)
    pieces = build_pieces(resolved)
    trainer = build_trainer(resolved, pieces, pieces.callbacks)
    arguments: dict[str, Any] = {
        "datamodule": pieces.datamodule,
        "ckpt_path": resolved["ckpt_path"],
        "weights_only": True,
    }
    if resolved["mode"] == "export":
        from runs.exporting import export_checkpoint

        export_checkpoint(pieces.module, Path(resolved["ckpt_path"]), folder / "model.onnx")
    elif resolved["mode"] == "predict":
        trainer.predict(pieces.module, return_predictions=False, **arguments)
        say(f"predictions and figures are in {folder}")
    else:
        tested = trainer.test(pieces.module, verbose=False, **arguments)
        metrics, floors = results.split_floors({k: v for part in tested for k, v in part.items()})
        result = {
            "name": resolved["name"],
            "stage": "eval",
            "checkpoint": str(resolved["ckpt_path"]),
            "metrics": metrics,
            "floors": floors,
            "variant": resolved.get("variant_name"),
            "paper": results.paper_row(resolved),
            "seed": resolved["seed"],
            **results.describe_software(),
        }
        results.write_result(folder, result)
        results.print_result(result)
    close_loggers(trainer.loggers)
