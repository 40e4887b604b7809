"""What a run's log keeps, and what the terminal shows of warnings."""

import logging
import logging.config
import warnings
from pathlib import Path

import pytest
import yaml
from hydra import __file__ as hydra_package

from runs.run_log import _plainly, log_to, say


@pytest.fixture
def own_logging():
    """Leaves the logging of the tests as it was."""
    root, format_ = logging.getLogger(), warnings.formatwarning
    before, level = list(root.handlers), root.level
    root.handlers.clear()
    logging.captureWarnings(False)  # or it would believe that an earlier run's capture still holds
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:], warnings.formatwarning = before, format_
    root.setLevel(level)
    logging.captureWarnings(False)


def test_a_warning_of_ours_is_its_sentence_and_others_keep_their_place():
    ours = _plainly("two images are grey", UserWarning, __file__, 3)
    theirs = _plainly("old", DeprecationWarning, warnings.__file__, 3)
    assert ours == "warning: two images are grey"
    assert warnings.__file__ in theirs and "DeprecationWarning: old" in theirs


def test_a_further_job_of_a_sweep_logs_as_the_first(tmp_path, own_logging):
    disabled = Path(hydra_package).parent / "conf" / "hydra" / "job_logging" / "disabled.yaml"
    for job in ("0", "1"):
        logging.config.dictConfig(yaml.safe_load(disabled.read_text()))  # as Hydra does before each job
        log_to(tmp_path / job)
        say(f"this is job {job}")
        warnings.warn(f"job {job} is odd", stacklevel=1)
    for job in ("0", "1"):
        kept = (tmp_path / job / "run.log").read_text()
        assert f"this is job {job}" in kept and f"job {job} is odd" in kept
