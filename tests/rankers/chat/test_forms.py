"""Forms in which chat models name candidates, and titles that look like those forms; explanations name nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from sirius_rec.rankers.chat.parsing import parse_ranking

# Also the words and marks of the forms themselves.
TITLES = ["Oasis", "Blur", "Red", "Can", "Air", "Low", "Red: House", "New Order",
          "1. Outside", "#1 Crush", "2 Pac", "Rank 1", "50 Cent", "Artist: Unknown", "> Greater", "1"]  # fmt: skip
FILMS = ["Toy Story (1995)", "Heat (1995)", "Casino", "Casino (1995)", "Emma (1932)", "Emma (1996)", "2010 (1984)",
         "Good, the Bad (1966)"]  # fmt: skip


def named(text: str, titles: Sequence[str] = TITLES) -> list[str]:
    return [titles[position] for position in parse_ranking(text, titles).order]


FORMS = [
    "{n}. {t}", "{n}) {t}", "({n}) {t}", "[{n}] {t}", "{n}: {t}", "**{n}.** {t}", "**{n}**. {t}", "**{n}.** **{t}**",
    "**{n}. {t}**", "- {n}. {t}", "* {n}) {t}", "{n} - {t}", "{n} – {t}", "**{n}** - {t}", "#{n} {t}", "#{n}: {t}",
    "#{n} - {t}", "**#{n}** {t}", "{n}\\. {t}", "> {t}", "> {n}. {t}", "### {n}. {t}", "## {t}", "{n}. Artist: {t}",
    "Artist: {t}", "**Artist:** {t}", "{n}. **Artist**: {t}", "Rank {n}: {t}", "**Rank {n}:** {t}", "Rank {n} - {t}",
    "Rank #{n}: {t}", "No. {n}: {t}", "Movie {n}: *{t}*", '{n}. "{t}",', "| {n} | {t} |",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_line_of_a_form_is_read(form: str) -> None:
    plain = ["Oasis", "Red", "Blur", "New Order"]
    assert named("\n".join(form.format(n=n, t=t) for n, t in enumerate(plain, 1))) == plain
    talk = "Sure! Here is my ranking:\n\n{}\n\nThese fit what was heard."
    assert named(talk.format("\n".join(form.format(n=n, t=t) for n, t in enumerate(plain, 1)))) == plain


@pytest.mark.parametrize("form", ["{t}", *(form for form in FORMS if not form.startswith("|"))])
def test_titles_that_look_like_a_form_are_found_first(form: str) -> None:
    tricky = ["#1 Crush", "1. Outside", "50 Cent", "Rank 1", "2 Pac", "Artist: Unknown", "> Greater", "1"]
    assert named("\n".join(form.format(n=n, t=t) for n, t in enumerate(tricky, 1))) == tricky


@pytest.mark.parametrize(
    ("text", "order"),
    [
        # what stands behind an explanation mark is explanation
        ("1. Oasis - similar to Blur, Air, Can\n2. Blur\n3. Red", ["Oasis", "Blur", "Red"]),
        ("1. Oasis – like Blur, Air", ["Oasis"]),
        ("1. Oasis — Blur, Air", ["Oasis"]),
        ("1. Oasis: like Can, Air", ["Oasis"]),
        ("1. Oasis: Can, Air, Low", ["Oasis"]),
        ("1. Oasis (like Can, Air)\n2. Red", ["Oasis", "Red"]),
        ("1. **Oasis** Can, Air", ["Oasis"]),
        ('1. "Oasis" Can, Air', ["Oasis"]),
        # also behind a made-up title
        ("1. Suede - similar to Blur, Air, Can", []),
        ("1. Suede: Can, Air, Low", []),
        ("1. Suede (Can, Air, Low)", []),
        # and behind the last of a list
        ("Oasis, Can, Air: Low, Blur", ["Oasis", "Can", "Air"]),
        ("Oasis > Can - like Low, Blur", ["Oasis", "Can"]),
        ("1. Oasis, like Can, Air", ["Oasis"]),
        ("1. Oasis, because of Air", ["Oasis"]),
        # lists
        ("Oasis; Can; Air", ["Oasis", "Can", "Air"]),
        ("Oasis → Can → Air", ["Oasis", "Can", "Air"]),
        ("Oasis | Can | Air", ["Oasis", "Can", "Air"]),
        ("Ranking: Oasis, Can, Air", ["Oasis", "Can", "Air"]),
        ("My final order: Oasis > Can > Air", ["Oasis", "Can", "Air"]),
        ("['Oasis', 'Can']", ["Oasis", "Can"]),
        # the longest title: one is another's beginning
        ("1. Red: House - like Low\n2. Red", ["Red: House", "Red"]),
        ("1. Red: house music\n2. Red: House", ["Red", "Red: House"]),
        # marks or titles
        ("1. Outside - Bowie\n2. Red", ["1. Outside", "Red"]),
        ("#1 Crush: Garbage\nRed - a colour", ["#1 Crush", "Red"]),
        ("1. #1 Crush - Garbage\n2. Rank 1 (trance)", ["#1 Crush", "Rank 1"]),
        ("Rank 1: trance\nOasis: Britpop", ["Rank 1", "Oasis"]),
        ("1 - Suede\n1: Suede\n1) Suede", []),
        ("1. New Order: Low\n2. Red", ["New Order", "Red"]),
        ("1. \\#1 Crush\n2. Rank 1\\!", ["#1 Crush"]),
        # bold that holds the explanation too
        ("**1. Blur - Britpop**\n2. **Red - a colour**", ["Blur", "Red"]),
        # an introduction as a heading
        ("# Ranking\nBlur\nRed", ["Blur", "Red"]),
    ],
)
def test_explanations_and_lists(text: str, order: list[str]) -> None:
    assert named(text) == order


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ('{"1": "Oasis", "2": "Blur"}', ["Oasis", "Blur"]),
        ('{"2": "Oasis", "10": "Red", "1": "Blur"}', ["Blur", "Oasis", "Red"]),
        ('{"rank_1": "Oasis", "rank_2": "Blur"}', ["Oasis", "Blur"]),
        ('{"1": {"title": "Oasis"}, "2": {"title": "Blur"}}', ["Oasis", "Blur"]),
        ('{"ranking": ["Oasis", "Blur"], "why": ["Can", "Air", "Low"]}', ["Oasis", "Blur"]),
        ('{"why": ["loud", "louder"], "best": ["Oasis", "Blur"]}', ["Oasis", "Blur"]),
        ('{"candidates": ["Red", "Blur"], "ranking": ["Blur", "Red"]}', ["Blur", "Red"]),
        ('{"answer": {"ranking": {"1": "Blur", "2": "Red"}}}', ["Blur", "Red"]),
        ('```json\n["Oasis", "Blur"]\n```\nI put [Can] last because of its [taste].', ["Oasis", "Blur"]),
        ('As said in [1]:\n["Oasis", "Blur"]\nsee [2].', ["Oasis", "Blur"]),
        ('1. Red ["Blur"]\n2. Can ["Low"]', ["Red", "Can"]),
        ('["Suede", "Pulp"]\n', []),
        ('{"a": [[1], {}], "b": {}, "c": [1, "Red"]}', []),
        ('{"a":' * 3000 + '["Red"]' + "}" * 3000, []),
    ],
)
def test_json(text: str, order: list[str]) -> None:
    assert named(text) == order


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("1. Toy Story\n2. heat", ["Toy Story (1995)", "Heat (1995)"]),
        ("1. **Toy Story** - Pixar\n2. Heat: Mann", ["Toy Story (1995)", "Heat (1995)"]),
        ("Toy Story, Casino, Heat (1995)", ["Toy Story (1995)", "Casino", "Heat (1995)"]),
        ("Toy Story (1995), Heat (1986), Casino (1995)", ["Toy Story (1995)", "Casino (1995)"]),
        ("1. Good, the Bad", ["Good, the Bad (1966)"]),
        ("1. 2010\n2. Heat", ["2010 (1984)", "Heat (1995)"]),
        # a title of its own, one of two, another film
        ("1. Casino (1995)\n2. Casino", ["Casino (1995)", "Casino"]),
        ("1. Emma\n2. Emma (1996)", ["Emma (1996)"]),
        ("1. Toy Story (1996)\n2. Heat (1986) - Mann\n3. Casino", ["Casino"]),
    ],
)
def test_titles_without_their_year(text: str, order: list[str]) -> None:
    assert named(text, FILMS) == order


def test_a_title_that_two_candidates_share_is_not_a_third_without_its_year() -> None:
    assert named("1. air\n2. Can", ["Air", "AIR", "Air (1998)", "Can"]) == ["Can"]


def test_a_title_without_its_year_is_no_valid_answer() -> None:
    """ValidRatio asks for exactly a title, as it does of the language models."""
    assert not parse_ranking("1. Toy Story", FILMS).valid and parse_ranking("1. Toy Story (1995)", FILMS).valid


@pytest.mark.parametrize("text", [" " * 30000 + "x", "a, " * 10000, "[" * 20000, '["' * 10000, "[[1]," * 5000,
                                  "> " * 10000, "** " * 10000, " - x" * 8000, "1. " * 8000])  # fmt: skip
def test_garbage_is_read_quickly(text: str) -> None:
    started = time.monotonic()
    assert named(text) == []
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ('Candidates: ["Oasis","Blur","Air"]\n\nFinal ranking: ["Air","Oasis","Blur"]', ["Air", "Oasis", "Blur"]),
        ('{"candidates": ["Oasis", "Blur", "Air"], "order": ["Air", "Oasis", "Blur"]}', ["Air", "Oasis", "Blur"]),
        # a longer list is the ranking wherever it stands
        ('["Air", "Oasis", "Blur"]\nI left out ["Blur"]', ["Air", "Oasis", "Blur"]),
        ('[{"rank": 2, "title": "Blur"}, {"rank": 1, "title": "Air"}]', ["Air", "Blur"]),
        ('[{"position": 1, "title": "Blur"}, {"position": 1, "title": "Air"}]', ["Blur", "Air"]),
    ],
)
def test_a_repeated_slate_is_no_ranking_and_places_in_objects_count(text: str, order: list[str]) -> None:
    assert named(text) == order
    assert parse_ranking(text, TITLES).first == TITLES.index(order[0])


def test_prose_of_two_parts_is_no_list() -> None:
    assert named("Air\n\nBlur\n\nSince the user likes Low, Can") == ["Air", "Blur"]
    assert named("Air\n\nBlur\n\nThe user likes Low, Can") == ["Air", "Blur"]
    assert named("Air, Suede") == ["Air"]
