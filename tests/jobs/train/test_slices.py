"""Boxes: what a rank holds, who writes it, how boxes overlap."""

from __future__ import annotations

import pytest
import torch

from appliance.jobs.train.parallel.slices import (
    Coordinate,
    Cut,
    cut_of,
    inside,
    overlap,
    shape_of,
)

AT = Coordinate(0, 0, data_size=2, tensor_size=2)


def boxes(cut: Cut) -> list[tuple[tuple[int, int], ...]]:
    return [cut.box(at) for at in AT.peers()]


def test_both_axes_cut_the_same_dim_tensor_first() -> None:
    # Rank order is data, then tensor: neighbours hold the two tensor halves.
    assert boxes(Cut((8, 3), tensor_dim=0, data_dim=0)) == [
        ((0, 2), (0, 3)),
        ((4, 6), (0, 3)),
        ((2, 4), (0, 3)),
        ((6, 8), (0, 3)),
    ]


def test_axes_may_cut_different_dims() -> None:
    assert boxes(Cut((4, 6), tensor_dim=1, data_dim=0)) == [
        ((0, 2), (0, 3)),
        ((0, 2), (3, 6)),
        ((2, 4), (0, 3)),
        ((2, 4), (3, 6)),
    ]


@pytest.mark.parametrize(("size", "pieces"), [(5, 2), (3, 4), (1, 2), (8, 4)])
def test_uneven_cuts_are_those_of_torch_chunk(size: int, pieces: int) -> None:
    expected = [tuple(part.shape) for part in torch.zeros(size).chunk(pieces)]
    expected += [(0,)] * (pieces - len(expected))
    cut = Cut((size,), None, data_dim=0)
    found = [shape_of(cut.box(Coordinate(rank, 0, pieces, 1))) for rank in range(pieces)]
    assert found == expected


@pytest.mark.parametrize("cut", [Cut((8, 6), t, d) for t in (None, 0, 1) for d in (None, 0)])
def test_those_who_speak_cover_every_element_once(cut: Cut) -> None:
    seen = torch.zeros(cut.shape)
    for at in AT.peers():
        frame = tuple((0, size) for size in cut.shape)
        if cut.is_primary_replica(at):
            seen[inside(cut.box(at), frame)] += 1
        copies = sum(cut.box(peer) == cut.box(at) for peer in at.peers())
        assert copies == cut.copies(at)
    assert torch.equal(seen, torch.ones(cut.shape))


def test_overlap() -> None:
    assert overlap(((0, 4), (0, 2)), ((2, 6), (1, 3))) == ((2, 4), (1, 2))
    assert overlap(((0, 2), (0, 2)), ((2, 4), (0, 2))) is None
    assert overlap(((3, 3), (0, 2)), ((0, 4), (0, 2))) is None


def test_a_plain_parameter_is_not_cut() -> None:
    assert cut_of(torch.zeros(3, 2)) == Cut((3, 2), None, None)
