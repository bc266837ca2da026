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
    assert (
        memory_error(MemoryError("Unable to allocate 8.00 PiB for an array"))
        == "Unable to allocate 8.00 PiB for an array"
    )
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has 1.5 GiB. Of it …")
    assert memory_error(gpu) == "CUDA out of memory. Tried to allocate 2.00 MiB"
    cublas = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert "CUBLAS_STATUS_ALLOC_FAILED" in str(memory_error(cublas))
    assert memory_error(RuntimeError("CUDA error: out of memory\nCUDA kernel errors …")) == "CUDA error: out of memory"
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert "can't allocate memory" in str(memory_error(caught.value))
    dressed = ValueError("a library's own words")
    dressed.__cause__ = gpu
    assert memory_error(dressed) == memory_error(gpu)
    assert memory_error(RuntimeError("shapes differ")) is None
