"""Train a paper: ``python train.py experiment=<paper>_<dataset> trainer=gpu``."""

from omegaconf import DictConfig

from runs.command_line import open_train_door


def train(config: DictConfig) -> float | None:
    """Runs all stages of one config; returns the metric that a sweeper optimises."""
    from runs.training import Command, train_all_stages

    return train_all_stages(config, Command.from_hydra())


if __name__ == "__main__":
    open_train_door(train)
