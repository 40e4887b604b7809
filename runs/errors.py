"""The one exception a user is meant to read, and the phrases its sentences share."""

import difflib
from collections.abc import Iterable, Sequence

_AS_NEAR = 0.1  # of a likeness of 0 to 1: names of one paper begin alike, and would all be near


class InputError(ValueError):
    """The user's input is wrong: a path, a file, a config value, a command.

    The message is one sentence that says what is wrong, where, and what would be right. A door
    prints it without a stack trace and exits with code 2.
    """


def first_few(items: Sequence[object], limit: int = 5) -> str:
    """Names the first offenders and counts the rest: ``"a, b, c, d, e and 12 more"``."""
    shown = ", ".join(str(item) for item in items[:limit])
    rest = len(items) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown


def did_you_mean(word: str, known: Iterable[str], count: int = 3) -> str:
    """A closing phrase with the nearest known names, or with all of them when none is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, n=count, cutoff=0.5)
    if near:
        likeness = [difflib.SequenceMatcher(a=word, b=name).ratio() for name in near]
        near = [name for name, ratio in zip(near, likeness, strict=True) if ratio >= likeness[0] - _AS_NEAR]
        return f"did you mean {' or '.join(near)}?"
    return f"known are: {first_few(names, limit=20)}" if names else "none are known here"
