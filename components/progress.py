"""A progress bar for a long piece of work between or inside the steps of a run."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def track(items: Iterable[Item], total: int | None, label: str, shown: bool) -> Iterator[Item]:
    """The items, one after the other, with a bar that is gone at the end.

    Args:
        items: that the work is done on.
        total: how many; None: as many as ``items`` says, if it does.
        label: in front of the bar.
        shown: whether there is a bar at all.
    """
    if not shown:
        yield from items
        return
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, transient=True) as progress:
        yield from progress.track(items, total=total, description=label)
