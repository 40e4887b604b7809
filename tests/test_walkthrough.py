"""docs/add_a_paper.md, followed to the letter: its files are written, its commands run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runs.composition import PROJECT_ROOT

PAGE = PROJECT_ROOT / "docs" / "add_a_paper.md"
ROOMS = ("callbacks", "components", "conf", "datamodules", "lightning_modules", "runs")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with the page's files in it."""
    folder = tmp_path_factory.mktemp("walk") / "project"
    folder.mkdir()
    for room in ROOMS:
        shutil.copytree(PROJECT_ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for door in ("train.py", "eval.py", "report.py"):
        shutil.copy(PROJECT_ROOT / door, folder)
    blocks = re.findall(r"^```(?:python|yaml) (\S+)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert len(blocks) == 7
    for path, content in blocks:
        assert not (folder / path).exists(), f"{path} is in the project already"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder


def run(project: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_adds_a_paper_that_beats_its_own_baseline(project):
    sweep = next(line for line in PAGE.read_text().splitlines() if line.startswith("python train.py -m"))
    run(project, *sweep.split()[1:], "trainer=cpu", "trainer.enable_progress_bar=false")
    report = run(project, "report.py", "outputs/pseudo_label_digits", "--metric", "test/accuracy", "--format", "csv")
    rows = dict(line.split(",")[1:5:3] for line in report.splitlines()[1:])
    accuracy = {alpha: float(rows[f"model.alpha={alpha}"].partition(" ")[0]) for alpha in (0, 1)}
    assert accuracy[1] > accuracy[0] + 1  # points, mean of 3 seeds
    results = [json.loads(path.read_text()) for path in (project / "outputs").rglob("result.json")]
    assert len(results) == 6
    assert all(9 < result["floors"]["accuracy"] < 12 for result in results)


def test_the_pages_code_keeps_the_style_of_the_house(project):
    run(project, "-m", "ruff", "check", "--config", str(PROJECT_ROOT / "pyproject.toml"), "datamodules/digits.py",
        "lightning_modules/pseudo_label", "callbacks/digit_labels.py")  # fmt: skip
