"""A generated folder is whole or not there, and nobody else's folder is touched."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from datamodules.generated_folder import write_generated
from runs.errors import InputError

MANIFEST = "made.json"


def write_numbers(root: Path, count: int, between=lambda: None) -> None:
    """Files 0.txt to count - 1.txt; ``between`` is called before the last one."""

    def write_files(folder: Path) -> None:
        assert not list(folder.iterdir())
        for number in range(count):
            if number == count - 1:
                between()
            (folder / f"{number}.txt").write_text(str(number))

    write_generated(root, MANIFEST, {"count": count, "range": (0, count)}, "numbers", write_files)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_equal_set_is_left_and_another_replaced_whole(tmp_path):
    root = tmp_path / "data" / "numbers"
    write_numbers(root, 3)
    before = (root / "0.txt").stat().st_mtime_ns
    assert json.loads((root / MANIFEST).read_text()) == {"count": 3, "range": [0, 3]}
    write_numbers(root, 3)
    assert (root / "0.txt").stat().st_mtime_ns == before
    write_numbers(root, 2)
    assert names(root) == ["0.txt", "1.txt", MANIFEST]
    assert names(tmp_path / "data") == ["numbers"]


def test_an_empty_folder_is_filled_and_a_link_stays_one(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "numbers").symlink_to(tmp_path / "scratch")
    for count in (1, 2):
        write_numbers(tmp_path / "numbers", count)
        assert (tmp_path / "numbers").is_symlink()
        assert len(names(tmp_path / "scratch")) == count + 1
    assert names(tmp_path) == ["numbers", "scratch"]


@pytest.mark.parametrize("there", ["file", "folder", "other_set", "broken_manifest"])
def test_what_was_not_generated_is_refused_and_kept(tmp_path, there):
    root = tmp_path / "mine"
    if there == "file":
        root.write_text("years of work")
    else:
        root.mkdir()
        name = {"folder": "thesis.txt", "other_set": "shapes.json", "broken_manifest": MANIFEST}[there]
        (root / name).write_text("{")
    before = names(root) if root.is_dir() else root.read_text()
    with pytest.raises(InputError, match=r"data\.root=.*mine holds something else than numbers: name a new folder"):
        write_numbers(root, 1)
    assert (names(root) if root.is_dir() else root.read_text()) == before
    assert names(tmp_path) == ["mine"]


@pytest.mark.parametrize("first", [None, 2])
def test_what_is_broken_off_leaves_all_as_it_was(tmp_path, first):
    root = tmp_path / "numbers"
    if first:
        write_numbers(root, first)

    def disk_full() -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_numbers(root, 3, disk_full)
    assert names(tmp_path) == (["numbers"] if first else [])
    assert not first or names(root) == ["0.txt", "1.txt", MANIFEST]


@pytest.mark.parametrize("first", [None, 2])
def test_the_first_of_two_equal_writers_stays(tmp_path, first):
    root = tmp_path / "numbers"
    if first:
        write_numbers(root, first)
    faster: list[int] = []

    def another_is_faster() -> None:
        write_numbers(root, 3)
        faster.append((root / "0.txt").stat().st_mtime_ns)

    write_numbers(root, 3, another_is_faster)
    assert [(root / "0.txt").stat().st_mtime_ns] == faster
    assert names(tmp_path) == ["numbers"]


@pytest.mark.parametrize("first", [None, 2])
def test_writers_that_finish_together_all_end_well(tmp_path, first):
    root = tmp_path / "numbers"
    if first:
        write_numbers(root, first)
    together = Barrier(8, timeout=30)
    with ThreadPoolExecutor(8) as pool:
        for writer in [pool.submit(write_numbers, root, 3, together.wait) for _ in range(8)]:
            writer.result()
    assert names(root) == ["0.txt", "1.txt", "2.txt", MANIFEST]
    assert names(tmp_path) == ["numbers"]
