"""One process of a distributed run: ``python -m runs.rank <run folder>``; `runs.processes` starts it."""

import os
import sys
import threading
from pathlib import Path

from runs.command_line import answer_errors


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone, however it went."""

    def wait() -> None:
        while os.read(0, 1):  # standard input is a pipe from the parent, closed when it ends
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run() -> None:
    """Trains the run whose config lies in the folder given."""
    from runs.training import train_run

    train_run(Path(sys.argv[1]))


if __name__ == "__main__":
    end_with_parent()
    answer_errors(run)
