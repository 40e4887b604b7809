"""A folder of generated files, which stands whole or not at all and knows what it was generated from."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from runs.errors import InputError


def write_generated(
    root: Path, manifest_name: str, parameters: Mapping[str, Any], what: str, write_files: Callable[[Path], None]
) -> None:
    """Lets ``root`` hold the files of these parameters: a set of them is left as it is, of others replaced.

    Processes that start together each write the set, beside ``root``; the first one's is used by all.

    Args:
        root: the folder, which holds nothing else.
        manifest_name: JSON file in it with the parameters; a folder without it was not generated.
        parameters: all that the files depend on, with a version of the code that writes them.
        what: the files, in a sentence that refuses a folder.
        write_files: fills an empty folder.

    Raises:
        InputError: ``root`` holds something that was not generated.
    """
    wanted = json.loads(json.dumps(parameters))  # as it reads back: tuples are lists
    manifest = root / manifest_name
    there = _read(manifest)
    if there == wanted:
        return
    if there is None and root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"data.root={root} holds something else than {what}: name a new folder")
    place = root.resolve()  # a link stays a link
    place.parent.mkdir(parents=True, exist_ok=True)
    # On the same file system, and gone at the end with what is still in it.
    with TemporaryDirectory(prefix=f"{place.name}.writing-", dir=place.parent) as beside:
        made, replaced = Path(beside) / "made", Path(beside) / "replaced"
        made.mkdir()
        write_files(made)
        (made / manifest_name).write_text(json.dumps(wanted, indent=2) + "\n")
        there = _read(manifest)
        if there == wanted:  # another process was faster
            return
        if there is not None:
            with suppress(FileNotFoundError):  # another process has just taken it away
                place.rename(replaced)
        try:
            made.rename(place)
        except OSError:
            if _read(manifest) != wanted:
                raise


def _read(manifest: Path) -> dict[str, Any] | None:
    try:
        return json.loads(manifest.read_text())
    except (OSError, json.JSONDecodeError):
        return None
