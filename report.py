"""Table of many runs beside the papers' numbers: ``python report.py outputs/``."""

from runs.command_line import open_plain_door


def report(arguments: list[str]) -> int:
    """Prints mean and standard deviation over the runs below a folder."""
    from runs.reporting import main

    return main(arguments)


if __name__ == "__main__":
    open_plain_door(report)
