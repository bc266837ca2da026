"""Templates show history and slate as bare titles, one per line, and end before the answer."""

from __future__ import annotations

import pytest

from sirius_rec.config_sections import PromptSection
from sirius_rec.errors import ConfigError
from sirius_rec.prompts.templates import TEMPLATES, Template, get_template


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


def test_a_history_that_goes_on() -> None:
    """Without a line before the answer, a prompt and its answer are the beginning of the user's next prompt."""
    template = Template("own", history="Heard:", candidates="Of these:", answer=None, shows_slate=False)
    assert template.render(["Air", "Can"], ["Low"]) == "Heard:\nAir\nCan\n"
    assert template.render(["Air", "Can", "Low"], []).startswith(template.render(["Air", "Can"], []) + "Low\n")
    assert template.render_question(["Air"], "Can").startswith("Heard:\nAir\nCan\nWill this user")


def test_an_answer_behind_a_slate_needs_a_line_before_it() -> None:
    own = {"history": "Heard:", "answer": None}
    assert PromptSection(template=own, slate=False).form().answer is None
    with pytest.raises(ConfigError, match=r"prompts.template.answer: null .* set prompts.slate: false"):
        PromptSection(template=own, slate=True).form()
