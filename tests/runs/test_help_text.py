"""What --help lists."""

import re

from runs.composition import PROJECT_ROOT, group_choices
from runs.help_text import OF_A_PAPER, WIDTH, listing


def words(text: str) -> list[str]:
    return re.findall(r"[\w.]+", text)


def test_without_an_experiment_all_of_them_are_listed_each_once_and_no_line_is_long():
    text = listing(["trainer=cpu"])
    found = [word for word in words(text) if word in group_choices("experiment")]
    assert sorted(found) == sorted(group_choices("experiment"))
    assert max(map(len, text.splitlines())) <= WIDTH


def test_each_paper_has_one_paragraph():
    papers = [folder.name for folder in (PROJECT_ROOT / "lightning_modules").iterdir() if folder.is_dir()]
    text = listing([]).partition("experiment=\n")[2].partition("\n\n")[0]
    owners = []
    for paragraph in re.split(r"\n  (?=\w)", text):
        (owner,) = {max((p for p in papers if name.startswith(f"{p}_")), key=len) for name in words(paragraph)}
        owners.append(owner)
    assert len(owners) == len(set(owners)) > 1


def test_with_an_experiment_its_papers_choices_are_listed_and_no_other_papers():
    text = listing(["experiment=dic_demo"])
    for group in OF_A_PAPER:
        own = {option for option in group_choices(group) if option.startswith("dic_") or option == "dic"}
        others = set(group_choices(group)) - own - set(group_choices("data"))
        assert own and own <= set(words(text))
        assert not others & set(words(text))
