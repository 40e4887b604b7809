"""What a run says: everything to `run.log`, warnings and a few plain lines to the terminal too."""

import logging
import warnings
from pathlib import Path
from typing import Any

from runs.composition import PROJECT_ROOT
from runs.processes import global_rank

log = logging.getLogger("reprise")
_with_its_place = warnings.formatwarning
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
    for name in (log.name, "py.warnings", *_LIBRARIES):  # Hydra switches them off before each further job of a sweep
        logging.getLogger(name).disabled = False
    logging.captureWarnings(True)
    warnings.formatwarning = _plainly
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


def _plainly(message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning of ours as its sentence alone; where in the code it was raised helps nobody."""
    place = Path(filename)
    ours = category is UserWarning and place.is_relative_to(PROJECT_ROOT) and ".venv" not in place.parts
    return f"warning: {message}" if ours else _with_its_place(message, category, filename, lineno, line)
