"""Templates show history and slate as bare titles, one per line, and end before the answer."""

from __future__ import annotations

import pytest

from sirius_rec.errors import ConfigError
from sirius_rec.prompts.templates import TEMPLATES, get_template


def test_text_by_hand() -> None:
    assert get_template("books").render(["Emma"], ["Dune", "It, or: a title"]) == (
        "This user has read these books, oldest first:\nEmma\n"
        "Candidates for the next book:\nDune\nIt, or: a title\nNext book:\n"
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_title_stands_on_its_own_line_in_order(name: str) -> None:
    template = get_template(name)
    assert template.name == name
    lines = template.render(["a", "b, c"], ["x", "y: z", "b, c"]).split("\n")
    assert lines[1:3] == ["a", "b, c"]
    assert lines[4:7] == ["x", "y: z", "b, c"]
    assert lines[-1] == ""


def test_histories_of_different_users_give_different_prompts() -> None:
    template = get_template("generic")
    assert template.render(["a"], ["b", "c"]) != template.render(["a", "b"], ["c"])


def test_without_the_slate_the_prompt_is_the_history() -> None:
    template = get_template("books", shows_slate=False)
    text = "This user has read these books, oldest first:\nEmma\nNext book:\n"
    assert template.render(["Emma"], ["Dune", "It"]) == template.render(["Emma"], ["Ubik"]) == text
    assert get_template("books").shows_slate


def test_unknown_template_names_the_known() -> None:
    with pytest.raises(ConfigError, match="unknown prompt template 'film': choose one of music, books"):
        get_template("film")
