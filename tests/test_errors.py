"""What is taken from errors of libraries."""

from __future__ import annotations

import pytest

from sirius_rec.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("\n torn file\nat byte 3"), "torn file"), (EOFError(), "EOFError"), (OSError(" "), "OSError")],
)
def test_the_first_line_of_an_error_that_may_say_nothing(error: Exception, said: str) -> None:
    assert first_line(error) == said
