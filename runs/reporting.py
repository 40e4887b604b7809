"""Gathers the results of many runs into one table: mean ± standard deviation beside the paper."""

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runs.errors import InputError, did_you_mean, first_few
from runs.folders import RESULT_FILE, RUN_FILE
from runs.numbers import format_number

# Overrides that say where or how a job ran, not what it was.
_NOT_A_CHOICE = (
    "seed=",
    "data.fold=",
    "experiment=",
    "variant=",
    "trainer=",
    "trainer.enable",
    "logger",
    "paths.",
    "hydra.",
    "data.root=",
    "data.num_workers=",
    "sweep=",
    "launcher=",
    # Callbacks that only watch; those of rounds are part of a method, and what is chosen for them is shown.
    "callbacks.checkpoint",
    "callbacks.figures",
    "callbacks.learning_rate",
    "callbacks.predictions",
    "callbacks.progress",
    "callbacks.throughput",
)


@dataclass
class Group:
    """Runs of one experiment that differ in their seed or their fold alone."""

    name: str
    choices: tuple[str, ...]
    paper: dict[str, float]
    seeds: list[int] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    floors: dict[str, list[float]] = field(default_factory=dict)


def main(arguments: Sequence[str]) -> int:
    """The command `python report.py`."""
    parser = argparse.ArgumentParser(
        prog="report.py",
        description="Table of finished runs: mean ± standard deviation over seeds and folds, floor, paper.",
    )
    parser.add_argument("folders", nargs="*", default=["outputs"], help="folders to search (default: outputs)")
    parser.add_argument("--metric", action="append", help="only this metric, for example test/top1 (may be repeated)")
    parser.add_argument("--stage", help="what this stage of each run gave (default: the last one)")
    parser.add_argument(
        "--mean-over",
        metavar="KEY",
        help="one number a seed: the mean over the values of this setting, for example data.category, and over folds",
    )
    parser.add_argument(
        "--wide",
        action="store_true",
        help="a column for each metric; the paper's numbers and the floor on rows of their own",
    )
    parser.add_argument("--format", choices=("table", "markdown", "csv"), default="table")
    options = parser.parse_args(arguments)
    results = read_results([Path(folder) for folder in options.folders])
    if options.stage:
        results = of_stage(results, options.stage)
    if options.mean_over:
        results, gaps = means_over(results, options.mean_over)
        for gap in gaps:
            print(gap, file=sys.stderr)
    groups = group_results(results)
    known = list(dict.fromkeys(metric for group in groups for metric in group.metrics))
    metrics = [metric for metric in options.metric or known if metric in known]
    if not metrics:
        raise InputError(f"no run has the metric {', '.join(options.metric)}: known are {', '.join(sorted(known))}")
    if options.wide:
        _PRINTERS[options.format]([*_WIDE_COLUMNS, *metrics], wide_rows(groups, metrics))
    else:
        _PRINTERS[options.format](_COLUMNS, [row for group in groups for row in rows_of(group, options.metric)])
    return 0


def read_results(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """All finished runs below some folders; stages and evaluations are not runs of their own.

    Raises:
        InputError: if a folder does not exist or nothing in them is finished.
    """
    results = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder: give one that holds runs, for example outputs")
        for path in sorted(folder.rglob(RESULT_FILE)):
            if (path.parent / RUN_FILE).is_file():
                results.append(json.loads(path.read_text()))
    if not results:
        raise InputError(f"no finished run ({RESULT_FILE} beside {RUN_FILE}) below {', '.join(map(str, folders))}")
    return results


def of_stage(results: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """What one stage of each run gave; runs without it are left out.

    Raises:
        InputError: if no run has it.
    """
    stages = [result.get("stages") or {} for result in results]
    if not any(name in of_run for of_run in stages):
        known = {stage for of_run in stages for stage in of_run}
        raise InputError(f"--stage: no run has a stage '{name}': {did_you_mean(name, known)}")
    return [of_run[name] for of_run in stages if name in of_run]


def means_over(results: Sequence[dict[str, Any]], key: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Runs that differ in one setting, and in their fold, as one run of each seed, with the means of their numbers.

    So the deviation over these is that over seeds, and not over data sets. The paper's numbers are averaged alike.
    Of a run that was made twice the later counts.

    Args:
        results: of the runs.
        key: the setting; runs that were not given it are left out.

    Returns:
        The means; and a sentence for each seed that is left out, since some of its runs are missing.

    Raises:
        InputError: if no run was given the setting, or no seed has all its runs.
    """
    rows: dict[tuple[Any, ...], dict[int, dict[tuple[str, str], dict[str, Any]]]] = {}
    for result in results:
        typed = _typed(result)
        if key in typed:
            same = {name: word for name, word in typed.items() if name == "data.root" or _is_choice(name)}
            others = tuple(sorted(word for name, word in same.items() if name != key))
            row = rows.setdefault((result["name"], result.get("variant"), others), {})
            part = (typed[key].partition("=")[2], typed.get("data.fold", "data.fold=").partition("=")[2])
            row.setdefault(result["seed"], {})[part] = result
    if not rows:
        known = {name for result in results for name in _typed(result)}
        raise InputError(f"--mean-over: no run was given {key}=<value>: {did_you_mean(key, known)}")
    means, gaps = [], []
    for (name, variant, others), seeds in rows.items():
        every = sorted({part for parts in seeds.values() for part in parts})
        label = f"mean of {len({value for value, _ in every})} {key}"
        for seed, parts in seeds.items():
            absent = [f"{key}={value}" + (f" data.fold={fold}" if fold else "") for value, fold in every]
            absent = [words for words, part in zip(absent, every, strict=True) if part not in parts]
            if absent:
                words = " ".join(word for word in (name, variant) if word)
                gaps.append(f"{words}: seed {seed} is left out: no run with {first_few(absent)}")
                continue
            runs = list(parts.values())
            papers = [(run.get("paper") or {}).get("metrics") or {} for run in runs]
            means.append(
                {
                    **runs[0],
                    "overrides": [*others, label],
                    "metrics": _means([run["metrics"] for run in runs]),
                    "floors": _means([run["floors"] for run in runs]),
                    "paper": {"metrics": _means(papers)},
                }
            )
    if not means:
        raise InputError(f"--mean-over {key}: {'; '.join(gaps)}")
    return means, gaps


def _means(of_runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each number that every run has."""
    names = [name for name in of_runs[0] if all(one.get(name) is not None for one in of_runs)]
    return {name: statistics.fmean(one[name] for one in of_runs) for name in names}


def group_results(results: Iterable[dict[str, Any]]) -> list[Group]:
    """Groups runs that only differ in their seed or fold, in the order of first appearance.

    Where the runs of one experiment were given different data, these too make rows of their own.
    """
    groups: dict[tuple[str, tuple[str, ...]], Group] = {}
    results = [(result, _typed(result)) for result in results]
    roots: dict[str, set[str | None]] = {}
    for result, typed in results:
        roots.setdefault(result["name"], set()).add(typed.get("data.root"))
    for result, typed in results:
        choices = tuple(sorted(word for key, word in typed.items() if _is_choice(key)))
        if len(roots[result["name"]]) > 1:
            choices = (*choices, typed.get("data.root", "data.root as configured"))
        if result.get("variant"):  # the model of a baseline, like a variant, is known by its name
            choices = (result["variant"], *(word for word in choices if not word.startswith("model=")))
        paper = (result.get("paper") or {}).get("metrics") or {}
        group = groups.setdefault((result["name"], choices), Group(result["name"], choices, paper))
        group.seeds.append(result["seed"])
        for name, value in result["metrics"].items():
            group.metrics.setdefault(name, []).append(value)
        for name, value in result["floors"].items():
            group.floors.setdefault(name, []).append(value)
    return list(groups.values())


def _is_choice(key: str) -> bool:
    return not f"{key}=".startswith(_NOT_A_CHOICE)


def _typed(result: dict[str, Any]) -> dict[str, str]:
    """The overrides of a run by key; the last one wins."""
    return {word.partition("=")[0].lstrip("+"): word for word in result["overrides"]}


def rows_of(group: Group, only: Sequence[str] | None) -> list[list[str]]:
    """One row a metric: experiment, what was chosen, metric, n, mean ± std, floor, paper."""
    rows = []
    for metric, values in group.metrics.items():
        if only and metric not in only:
            continue
        floors = group.floors.get(metric.partition("/")[2])
        rows.append(
            [
                group.name,
                " ".join(group.choices) or "-",
                metric,
                str(len(values)),
                _mean_and_deviation(values),
                format_number(statistics.fmean(floors) if floors else None),
                format_number(group.paper.get(metric)),
            ]
        )
    return rows


def _mean_and_deviation(values: Sequence[float]) -> str:
    spread = f" ± {format_number(statistics.stdev(values))}" if len(values) > 1 else ""
    return format_number(statistics.fmean(values)) + spread


def wide_rows(groups: Sequence[Group], metrics: Sequence[str]) -> list[list[str]]:
    """A row a group, with a cell a metric; below it the paper's numbers, and below an experiment its floors.

    The floor is that of the experiment's first group; where another one's differs, it has a row too.
    """
    rows = []
    for experiment in dict.fromkeys(group.name for group in groups):
        floors: list[list[str]] = []
        for group in (group for group in groups if group.name == experiment):
            row = [experiment, " ".join(group.choices) or "-"]
            values = [group.metrics.get(metric) for metric in metrics]
            rows.append([*row, str(len(group.seeds)), *(_mean_and_deviation(each) if each else "-" for each in values)])
            if any(metric in group.paper for metric in metrics):
                rows.append([*row, "paper", *(format_number(group.paper.get(metric)) for metric in metrics)])
            below = [group.floors.get(metric.partition("/")[2]) for metric in metrics]
            cells = [format_number(statistics.fmean(each) if each else None) for each in below]
            if any(below) and cells not in [floor[3:] for floor in floors]:
                floors.append([experiment, row[1] if floors else "-", "floor", *cells])
        rows += floors
    return rows


_COLUMNS = ["experiment", "variant", "metric", "runs", "mean ± std", "floor", "paper"]
_WIDE_COLUMNS = ["experiment", "variant", "runs"]
_IN_WORDS = {"experiment", "variant", "metric"}


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(column, justify="left" if column in _IN_WORDS else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # A file or pipe has no width of its own; 80 columns would fold every word.
    # Not as markup: [a,b] is a list that was chosen.
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)


def _print_markdown(columns: list[str], rows: list[list[str]]) -> None:
    for row in [columns, ["---"] * len(columns), *rows]:
        print("| " + " | ".join(row) + " |")


def _print_csv(columns: list[str], rows: list[list[str]]) -> None:
    csv.writer(sys.stdout, lineterminator="\n").writerows([columns, *rows])


_PRINTERS = {"table": _print_table, "markdown": _print_markdown, "csv": _print_csv}
