"""What `python train.py --help` lists: the experiments, or with `experiment=<name>` all choices of its paper."""

import textwrap
from collections.abc import Iterable, Sequence

from runs.composition import PROJECT_ROOT, group_choices

ANYBODYS = ("trainer", "logger", "launcher", "debug")  # config groups that no paper owns
OF_A_PAPER = ("experiment", "variant", "sweep", "model")  # their options begin with the paper's name
WIDTH = 110


def listing(overrides: Sequence[str]) -> str:
    """The choices, wrapped; of one paper where the overrides name an experiment.

    Args:
        overrides: words of the command line, ``key=value``.
    """
    named = [word.partition("=")[2] for word in overrides if word.startswith("experiment=")]
    if not named:
        experiments = "\n".join(
            _wrapped("", names, indent="  ") for names in _by_paper(group_choices("experiment")).values()
        )
        return "\n".join(
            [
                "experiment=",
                experiments,
                "",
                *(_wrapped(f"{group}= ", group_choices(group)) for group in ANYBODYS),
                "variant=, sweep=, model=, data=: with experiment=<name> --help",
            ]
        )
    paper = next(iter(_by_paper(named)))
    own = ((group, _by_paper(group_choices(group)).get(paper, [])) for group in OF_A_PAPER)
    general = ((group, group_choices(group)) for group in (*ANYBODYS, "data"))
    return "\n".join(_wrapped(f"{group}= ", options) for group, options in (*own, *general) if options)


def _by_paper(options: Iterable[str]) -> dict[str, list[str]]:
    """Options by the package of the paper whose name they begin with."""
    papers = [folder.name for folder in (PROJECT_ROOT / "lightning_modules").iterdir() if folder.is_dir()]
    found: dict[str, list[str]] = {}
    for option in options:
        owners = [paper for paper in papers if option == paper or option.startswith(f"{paper}_")]
        found.setdefault(max(owners, key=len, default=""), []).append(option)
    return found


def _wrapped(head: str, options: Sequence[str], indent: str = "") -> str:
    return textwrap.fill(
        ", ".join(options), WIDTH, initial_indent=indent + head, subsequent_indent=indent + "  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
