"""Growth of resident memory, on allocations of known size."""

import sys

import pytest
import torch

from tiledse.stream.memory import peak_resident

PIECE, COUNT = 250_000, 60  # floats, pieces: 60 MB in all


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says what resident memory is")
def test_memory_that_was_freed_before_and_is_taken_again_counts():
    pieces = [torch.ones(PIECE) for _ in range(COUNT)]
    del pieces  # from here on the C library takes such pieces from its heap
    pieces, pins = [], []
    for _ in range(COUNT):
        pieces.append(torch.ones(PIECE))
        pins.append(torch.ones(8))  # small ones between, so that the heap does not end where the pieces do
    del pieces
    with peak_resident() as grown:
        again = [torch.ones(PIECE) for _ in range(COUNT)]
    assert len(pins) == len(again)
    assert grown() is None or 50e6 < grown() < 70e6
