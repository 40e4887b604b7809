"""What all tests share: where real samples lie, and one-thread arithmetic on small machines."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of real samples, given by REPRISE_DATA."""
    folder = os.environ.get("REPRISE_DATA")
    if not folder:
        pytest.skip("REPRISE_DATA is not set: this test reads real samples from the folder it names")
    return Path(folder).absolute()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Test processes run side by side; more threads than cores only slow them down."""
    import torch

    torch.set_num_threads(1)
