"""Judge a checkpoint or predict with it: ``python eval.py ckpt_path=<run>/checkpoints/last.ckpt``."""

from omegaconf import DictConfig

from runs.command_line import open_eval_door


def evaluate(config: DictConfig) -> None:
    """Tests the checkpoint, or writes its predictions for the user's own files."""
    from runs.evaluating import evaluate_checkpoint

    evaluate_checkpoint(config)


if __name__ == "__main__":
    open_eval_door(evaluate)
