"""What is taken from errors of libraries."""

from __future__ import annotations

import pytest

from sirius_rec.errors import first_line, memory_error


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("\n torn file\nat byte 3"), "torn file"), (EOFError(), "EOFError"), (OSError(" "), "OSError")],
)
def test_the_first_line_of_an_error_that_may_say_nothing(error: Exception, said: str) -> None:
    assert first_line(error) == said


def test_no_memory_whoever_says_so() -> None:
    torch = pytest.importorskip("torch")
    assert memory_error(MemoryError()) == "out of memory"
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has 1.5 GiB. Of it …")
    assert memory_error(gpu) == "CUDA out of memory. Tried to allocate 2.00 MiB"
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert "can't allocate memory" in str(memory_error(caught.value))
    assert memory_error(RuntimeError("shapes differ")) is None
