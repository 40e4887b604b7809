"""The table of experiments, read from the configs: ``make experiments`` prints it and puts it into the README."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from runs.composition import PROJECT_ROOT, compose_config, group_choices

README = PROJECT_ROOT / "README.md"
BEGIN, END = "<!-- experiments: begin -->", "<!-- experiments: end -->"
COLUMNS = ("experiment", "paper", "dataset", "stages", "runs offline", "measured here", "the paper's number")


def table() -> str:
    """The table as Markdown, one row for each file in `conf/experiment/`."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(_row(name) for name in group_choices("experiment"))]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def put_into(text: str) -> str:
    """A text with the table between its two markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def _row(name: str) -> list[str]:
    config = compose_config([f"experiment={name}"])
    paper = config.paper
    slug = Path(str(config.model._target_).replace(".", "/")).parts[1]
    return [
        f"`{name}`",
        f"[{str(paper.title).partition(':')[0]}](docs/papers/{slug}.md)",
        str(config.dataset),
        " → ".join(config.only_stages or config.stages) or "one",
        "yes" if _brings_its_data(config) else "needs `data.root`",
        str(config.measured or "-"),
        _paper_number(paper),
    ]


def _brings_its_data(config: DictConfig) -> bool:
    return not OmegaConf.is_missing(config.data, "root")


def _paper_number(paper: DictConfig) -> str:
    """The first metric that the experiment cites, its headline; a run's own table shows all of them."""
    numbers = [f"{metric} {value}" for metric, value in (paper.get("metrics") or {}).items()]
    return f"{numbers[0]} ({paper.row})" if numbers else "-"


def main() -> None:
    """Prints the table and brings the README up to date."""
    print(table())
    README.write_text(put_into(README.read_text()))


if __name__ == "__main__":
    main()
