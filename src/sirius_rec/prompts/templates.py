"""Prompt templates, one per domain: the task, the user's history and the slate, as titles, one per line.

Titles stand on lines of their own because they contain commas, quotes and colons; the prompt ends with a line break,
so that the answer is the bare title.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sirius_rec.errors import ConfigError

YES, NO = "Yes", "No"
QUESTION = f"Will this user choose it? {YES} or {NO}:"
RANKING = (
    "Rank these candidates by how likely each is to come next. Answer with their titles alone, spelled as above, one "
    "per line, the most likely first."
)


@dataclass(frozen=True)
class Template:
    """Text around the two lists of titles. Without `shows_slate` the prompt is the history alone.

    answer: the line before the answer; None where the answer is the history's next line. A history is then a text that
    goes on, and what is computed for one of a user's rows is the beginning of the next.
    """

    name: str
    history: str
    candidates: str
    answer: str | None
    shows_slate: bool = True

    def render(self, history: Sequence[str], candidates: Sequence[str]) -> str:
        """The prompt for a history (oldest first) and a slate (in the order shown, if it is shown).

        >>> print(TEMPLATES["music"].render(["Air"], ["Björk", "Can"]), end="")
        This user has listened to these artists, oldest first:
        Air
        Candidates for the next artist:
        Björk
        Can
        Next artist:
        """
        slate = [self.candidates, *candidates] if self.shows_slate else []
        return "\n".join([self.history, *history, *slate, *self._before_answer, ""])

    @property
    def _before_answer(self) -> list[str]:
        return [] if self.answer is None else [self.answer]

    def render_question(self, history: Sequence[str], candidate: str) -> str:
        """The prompt that asks about one candidate; its answer is `YES` or `NO`.

        >>> print(TEMPLATES["music"].render_question(["Air"], "Can"), end="")
        This user has listened to these artists, oldest first:
        Air
        Next artist:
        Can
        Will this user choose it? Yes or No:
        """
        return "\n".join([self.history, *history, *self._before_answer, candidate, QUESTION, ""])

    def render_ranking(self, history: Sequence[str], candidates: Sequence[str]) -> str:
        """The prompt that asks for the whole slate in order, for models that follow instructions."""
        return "\n".join([self.history, *history, self.candidates, *candidates, "", RANKING])


def _template(name: str, past: str, noun: str) -> Template:
    return Template(
        name=name,
        history=f"This user has {past} these {noun}s, oldest first:",
        candidates=f"Candidates for the next {noun}:",
        answer=f"Next {noun}:",
    )


TEMPLATES: dict[str, Template] = {
    "music": _template("music", "listened to", "artist"),
    "books": _template("books", "read", "book"),
    "games": _template("games", "played", "game"),
    "movies": _template("movies", "watched", "movie"),
    "generic": _template("generic", "chosen", "item"),
}


def get_template(name: str, *, shows_slate: bool = True) -> Template:
    """The template of a domain; ConfigError names the known ones."""
    if name not in TEMPLATES:
        raise ConfigError(f"unknown prompt template '{name}': choose one of {', '.join(TEMPLATES)}")
    return replace(TEMPLATES[name], shows_slate=shows_slate)
