"""The tables of experiments, read from the configs: ``make experiments`` prints and puts them into the README."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from runs.composition import PROJECT_ROOT, compose_config, group_choices

README = PROJECT_ROOT / "README.md"
PAGES = Path("docs", "papers")
BEGIN, END = "<!-- experiments: begin -->", "<!-- experiments: end -->"
SUMMARY = ("paper", "experiments", "runs offline")
COLUMNS = ("experiment", "dataset", "stages", "data", "measured here", "the paper's number")


def tables() -> str:
    """Markdown: a row for each paper, then its experiments, one row for each file in `conf/experiment/`."""
    papers: dict[str, dict[str, DictConfig]] = {}
    for name in group_choices("experiment"):
        config = compose_config([f"experiment={name}"])
        slug = Path(str(config.model._target_).replace(".", "/")).parts[1]
        papers.setdefault(slug, {})[name] = config
    summary, details = [], []
    for slug, experiments in sorted(papers.items(), key=lambda paper: _title(paper[0]).casefold()):
        offline = [f"`{name}`" for name, config in experiments.items() if _brings_its_data(config)]
        link = f"[{_title(slug)}]({(PAGES / slug).as_posix()}.md)"
        summary.append([link, str(len(experiments)), ", ".join(offline) or "-"])
        rows = [_row(name, config) for name, config in experiments.items()]
        details += [f"<details><summary>{_title(slug)}</summary>", "", _markdown(COLUMNS, rows), "", "</details>"]
    return "\n".join([_markdown(SUMMARY, summary), "", *details])


def put_into(text: str) -> str:
    """A text with the tables between its two markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def _title(slug: str) -> str:
    """The heading of the paper's page."""
    with (PROJECT_ROOT / PAGES / f"{slug}.md").open() as page:
        return page.readline().lstrip("# ").strip()


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows])


def _row(name: str, config: DictConfig) -> list[str]:
    return [
        f"`{name}`",
        str(config.dataset),
        " → ".join(config.only_stages or config.stages) or "one",
        "generated" if _brings_its_data(config) else "`data.root`",
        str(config.measured or "-"),
        _paper_number(config.paper),
    ]


def _brings_its_data(config: DictConfig) -> bool:
    return not OmegaConf.is_missing(config.data, "root")


def _paper_number(paper: DictConfig) -> str:
    """The first metric that the experiment cites, its headline; a run's own table shows all of them."""
    numbers = [f"{metric} {value}" for metric, value in (paper.get("metrics") or {}).items()]
    return f"{numbers[0]} ({paper.row})" if numbers else "-"


def main() -> None:
    """Prints the tables and brings the README up to date."""
    print(tables())
    README.write_text(put_into(README.read_text()))


if __name__ == "__main__":
    main()
