"""The rules of the house that a machine can check."""

import ast
import re
from pathlib import Path

import pytest

from runs.composition import PROJECT_ROOT, group_choices
from runs.experiment_table import put_into

ROOMS = ("components", "datamodules", "lightning_modules", "callbacks", "runs")
GROUND_FLOOR = {"runs.errors"}
MAY_IMPORT = {
    "components": ("components",),
    "datamodules": ("datamodules", "components"),
    "lightning_modules": ("components", "lightning_modules.closed_form"),  # and the paper's own package
    "callbacks": ("callbacks", "components", "runs.round_store", "runs.atomic_files"),
    "runs": ("runs", "components"),
}


def project_imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name.partition(".")[0] in ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    files = sorted((PROJECT_ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        allowed = MAY_IMPORT[room]
        if room == "lightning_modules" and path.parent.name != room:
            allowed = (*allowed, f"lightning_modules.{path.relative_to(PROJECT_ROOT / room).parts[0]}")
        for name in project_imports(path) - GROUND_FLOOR:
            assert any(name == a or name.startswith(f"{a}.") for a in allowed), f"{path}: {name}"


@pytest.mark.parametrize("door", ["train.py", "eval.py", "report.py"])
def test_doors_are_thin_and_import_runs_alone(door):
    path = PROJECT_ROOT / door
    assert all(name.startswith("runs.") for name in project_imports(path))
    assert len(path.read_text().splitlines()) < 40


def test_no_room_is_named_for_nothing():
    for path in PROJECT_ROOT.rglob("*.py"):
        if ".venv" not in path.parts:
            assert not re.match(r"(utils?|misc|helpers?|common|manager)$", path.stem), path


def test_the_readme_shows_the_experiments_that_there_are():
    text = (PROJECT_ROOT / "README.md").read_text()
    assert put_into(text) == text, "run `make experiments`"


def test_every_experiment_has_a_page_and_tests():
    papers = [path.name for path in (PROJECT_ROOT / "lightning_modules").iterdir() if (path / "module.py").is_file()]
    for experiment in group_choices("experiment"):
        paper = max((name for name in papers if experiment.startswith(f"{name}_")), key=len)
        assert (PROJECT_ROOT / "docs" / "papers" / f"{paper}.md").is_file()
        assert list((PROJECT_ROOT / "tests" / "papers").glob(f"test_{paper}*.py"))
