"""Ranked lists as chat models write them: numbered, quoted, in markdown, partial, titles inside titles or made up."""

from __future__ import annotations

import numpy as np
import pytest

from sirius_rec.rankers.chat.parsing import parse_ranking

TITLES = ["Red", "Red House Painters", "Blur", "Can", "10,000 Maniacs", "Earth, Wind & Fire", "1. Outside", "!!!"]


def named(text: str) -> list[str]:
    return [TITLES[position] for position in parse_ranking(text, TITLES).order]


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("Blur\nRed\nCan", ["Blur", "Red", "Can"]),
        ("1. Blur\n2. Red\n3. Can", ["Blur", "Red", "Can"]),
        ("1) Blur\n2) Red", ["Blur", "Red"]),
        ("(1) Blur\n(2) Red", ["Blur", "Red"]),
        ("1.Blur\n2.Red", ["Blur", "Red"]),
        ("- Blur\n* Red\n• Can", ["Blur", "Red", "Can"]),
        ("1. \"Blur\"\n2. “Red”\n3. 'Can'", ["Blur", "Red", "Can"]),
        ("1. **Blur**\n2. *Red*\n3. `Can`", ["Blur", "Red", "Can"]),
        ("**1. Blur**\n**2. Red**", ["Blur", "Red"]),
        ('1. **"Blur"**,\n2. "Red".', ["Blur", "Red"]),
        ("  blur \n RED   house  painters", ["Blur", "Red House Painters"]),
        # titles inside titles
        ("1. Red House Painters\n2. Red", ["Red House Painters", "Red"]),
        ("1. Red House\n2. Reds\n3. Blur", ["Blur"]),
        # titles that look like list items, or hold what separates
        ("10,000 Maniacs\n1. Outside\n!!!", ["10,000 Maniacs", "1. Outside", "!!!"]),
        ("1. 10,000 Maniacs\n2. 1. Outside\n3. !!!", ["10,000 Maniacs", "1. Outside", "!!!"]),
        ("1. Earth, Wind & Fire\n2. Can", ["Earth, Wind & Fire", "Can"]),
        # explanations
        ("1. Red House Painters - slowcore, like Red\n2. Blur: they fit Can", ["Red House Painters", "Blur"]),
        ("1. **Blur** – Britpop\n2. Red (1997)\n3. Can | krautrock", ["Blur", "Red", "Can"]),
        # talk around the list, also with titles as words
        ("Here is the list:\n\n1. Blur\n2. Red\n\nYou Can also try others!", ["Blur", "Red"]),
        ("Sure! Can\n", []),
        ("Ranking:\nBlur\nRed", ["Blur", "Red"]),
        ("Red:\nBlur", ["Blur"]),
        # made up, repeated, partial, empty
        ("1. Oasis\n2. Blur\n3. Suede", ["Blur"]),
        ("1. Blur\n2. Red\n3. Blur", ["Blur", "Red"]),
        ("1. Bl", []),
        ("", []),
        ("I cannot rank artists.", []),
        # in one line
        ("Blur, Red, Can", ["Blur", "Red", "Can"]),
        ("Blur > Red House Painters > Earth, Wind & Fire", ["Blur", "Red House Painters", "Earth, Wind & Fire"]),
        ("1. Blur, Red, Can", ["Blur", "Red", "Can"]),
        ("10,000 Maniacs; Oasis; Blur", ["10,000 Maniacs", "Blur"]),
        # JSON
        ('["Red House Painters", "Oasis", "Red"]', ["Red House Painters", "Red"]),
        ('```json\n["Blur", "Red"]\n```', ["Blur", "Red"]),
        ('["Blur", "Re', []),
        ('{"ranking": [{"rank": 1, "title": "Blur"}, {"rank": 2, "title": "Red"}]}', ["Blur", "Red"]),
        # another text beside the title, a made-up title, and none at all
        ('[{"why": "loud", "artist": "Blur"}, {"artist": "Oasis"}, {"artist": "Can"}]', ["Blur", "Can"]),
        ('[{"rank": 1}, {"rank": 2}]', []),
        # one key for the list: neither a genre that is a title, nor what a made-up one is likened to
        ('[{"genre": "Can", "title": "Blur (1997)"}, {"genre": "Air", "title": "Red"}]', ["Blur", "Red"]),
        ('[{"title": "Oasis", "similar": "Red"}, {"title": "Blur", "similar": "Can"}]', ["Blur"]),
        ('[{"rank": "first", "who": "1. Blur"}, {"rank": "second", "who": "**Red**"}]', ["Blur", "Red"]),
        ('[{"title": "Blur"}, {"rank": 2, "title": null}, {"title": "Red"}]', ["Blur", "Red"]),
        # thinking aloud
        ("<think>\n1. Red\n</think>\n1. Blur\n2. Can", ["Blur", "Can"]),
        ("```\nBlur\nRed\n```", ["Blur", "Red"]),
    ],
)
def test_order(text: str, order: list[str]) -> None:
    assert named(text) == order


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("1. Blur\n2. Red", "Blur"),
        ('"Red"', "Red"),
        ("Here you are:\n1. **Red House Painters**", "Red House Painters"),
        ("1. Oasis\n2. Blur", None),  # the first is made up
        ("1. Blur - Britpop\n2. Red", None),  # a title and more
        ("1. Red House\n2. Red", None),  # part of a title
        ("", None),
    ],
)
def test_the_first_answer_is_valid_when_it_is_exactly_a_title(text: str, first: str | None) -> None:
    found = parse_ranking(text, TITLES)
    assert found.valid == (first is not None)
    assert first is None or (found.first is not None and TITLES[found.first] == first)


def test_titles_that_differ_in_case_only_are_told_apart_or_left_out() -> None:
    titles = ["Air", "AIR", "Can"]
    assert parse_ranking("1. AIR\n2. Air\n3. can", titles).order == (1, 0, 2)
    found = parse_ranking("1. air\n2. Can", titles)
    assert found.order == (2,) and not found.valid


def test_scores_fall_in_the_order_named_and_the_rest_is_tied_behind() -> None:
    np.testing.assert_array_equal(parse_ranking("Can\nRed", ["Red", "Blur", "Can", "Low"]).scores(4), [3, 0, 4, 0])


def test_every_order_of_a_slate_is_read_back() -> None:
    rng = np.random.default_rng(0)
    for style in ("{n}. {t}", "- {t}", "{t}", '{n}) "{t}"', "{n}. **{t}**"):
        order = rng.permutation(len(TITLES))
        text = "\n".join(style.format(n=n + 1, t=TITLES[i]) for n, i in enumerate(order))
        assert parse_ranking(text, TITLES).order == tuple(order)


def test_thoughts_without_both_tags_are_no_ranking() -> None:
    """The opening tag may stand in the chat template; a limit on tokens may cut thoughts off before they end."""
    titles = ["Red", "Blur", "Low", "Can"]
    assert parse_ranking("1. Red\n2. Low\n</think>\n\n1. Blur\n2. Can", titles).order == (1, 3)
    cut = parse_ranking("<think>\nmaybe\n1. Red\n2. Blur", titles)
    assert cut.order == () and not cut.valid
