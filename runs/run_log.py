"""What a run says: everything to `run.log`, warnings and a few plain lines to the terminal too."""

import logging
from pathlib import Path

from runs.processes import global_rank

log = logging.getLogger("reprise")
_LIBRARIES = ("pytorch_lightning", "lightning_fabric", "lightning")


def log_to(folder: Path) -> None:
    """Sends the log of this process to `<folder>/run.log` from now on; only rank 0 writes one."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    for name in _LIBRARIES:  # they bring their own handlers, for the terminal
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.captureWarnings(True)
    if global_rank() != 0:
        root.addHandler(logging.NullHandler())
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / "run.log")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    screen = logging.StreamHandler()
    screen.setFormatter(logging.Formatter("%(message)s"))
    screen.addFilter(lambda record: record.levelno >= logging.WARNING or record.name == log.name)
    root.addHandler(file)
    root.addHandler(screen)


def say(line: str) -> None:
    """A line for the person at the terminal, kept in the log as well."""
    log.info(line)
