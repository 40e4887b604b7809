"""How long a user waits for `train.py --help`, against importing Lightning, which most templates do first."""

import statistics
import subprocess
import sys
import time

from runs.composition import PROJECT_ROOT


def seconds(*command: str) -> float:
    """Median wall time of three starts."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=PROJECT_ROOT, capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    help_text, lightning = seconds("train.py", "--help"), seconds("-c", "import pytorch_lightning")
    print(f"train.py --help {help_text:.2f} s, import pytorch_lightning {lightning:.2f} s")
    print(f"ratio help / import: {help_text / lightning:.2f}")


if __name__ == "__main__":
    main()
