"""Rows of shards: hashes that stay what they are, and slices."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucavirus.hashes import sequence_hashes, text_hashes
from lucavirus.record_batches import Record, to_batch
from lucavirus.rows import Rows, cut_windows, make_rows

TEXTS = ["0x2d06800538d394c2", "0xc3ece278fdefad2e", "0xccd9d9c86ad081f3"]  # the first: as published with XXH3
SEQUENCES = ["0x5f2ff276010b49f5", "0x89997a275e6216fb"]
ROW = "0x9dfd9d97f5522f89"


def rows(*records: tuple[str, Any, bytes], size: int | None = None, labels: Any = None) -> Rows:
    batch = to_batch([Record(name, molecule, tokens, "f", 0) for name, molecule, tokens in records])
    (made,) = make_rows(batch, cut_windows(np.diff(batch.bounds), size, 1), labels or {})
    return made


def test_hashes_are_those_of_published_data_sets() -> None:
    """The splits hang on them: another version of xxhash or another machine must give the same."""
    assert [hex(n) for n in text_hashes([b"", b"NC_1", bytes(range(5, 39)) * 9])] == TEXTS
    two = sequence_hashes(b"\x09\x05\x06", np.array([1, 1]), np.array([3, 3]), np.array([0, 1], np.uint8))
    assert [hex(n) for n in two] == SEQUENCES
    assert hex(rows(("a", "gene", b"\x05"), labels={0: {"gene_type": [(0, 0, 3)]}}).row_hash[0]) == ROW


def test_a_row_is_known_by_id_body_and_labels() -> None:
    label = {"gene_type": [(0, 0, 3)]}
    kinds = [
        rows(("a", "gene", b"\x05\x06")),
        rows(("b", "gene", b"\x05\x06")),
        rows(("a", "gene", b"\x06\x05")),
        rows(("a", "prot", b"\x05\x06")),
        rows(("a", "gene", b"\x05\x06"), labels={0: label}),
        rows(("a", "gene", b"\x05\x06"), labels={0: {"gene_type": [(0, 1, 3)]}}),
        rows(("a", "gene", b"\x05\x06"), labels={0: {**label, "gene_taxonomy": [(1,)]}}),
    ]
    assert len({int(kind.row_hash[0]) for kind in kinds}) == len(kinds)
    assert kinds[0].row_hash == rows(("a", "gene", b"\x05\x06")).row_hash
    swapped = {"gene_taxonomy": [(1,)], "gene_type": [(0, 0, 3)]}
    assert kinds[-1].row_hash == rows(("a", "gene", b"\x05\x06"), labels={0: swapped}).row_hash


def test_windows_know_the_whole_sequence() -> None:
    made = rows(("w", "prot", b"\x05"), ("x", "gene", b"\x05\x06\x07\x08\x05"), ("y", "prot", b"\x09\x0a"), size=3)
    assert (made.tokens, made.offsets.tolist()) == (b"\x05\x05\x06\x07\x07\x08\x05\x09\x0a", [0, 1, 4, 7, 9])
    assert (made.ids, made.id_offsets.tolist()) == (b"wx_0_0_3x_1_2_5y", [0, 1, 8, 15, 16])
    whole = sequence_hashes(b"\x05\x06\x07\x08\x05", np.array([0]), np.array([5]), np.array([0], np.uint8))[0]
    assert made.parent_hash.tolist() == [made.content_hash[0], whole, whole, made.content_hash[3]]
    assert made.molecule.tolist() == [1, 0, 0, 1]


def test_a_window_without_labels_is_that_of_a_sequence_without() -> None:
    genome = ("a", "gene", b"\x05\x06\x07\x08\x05")
    labelled, plain = rows(genome, size=3, labels={0: {"gene_type": [(0, 1, 3)]}}), rows(genome, size=3)
    assert (labelled.row_hash == plain.row_hash).tolist() == [False, True]
    assert labelled.labels == {0: {"gene_type": [(0, 1, 3)]}}


def test_a_slice_is_rows() -> None:
    label = {"gene_taxonomy": [(4,)]}
    three = rows(("a", "gene", b"\x05\x06"), ("bc", "gene", b"\x07"), ("d", "gene", b"\x08\x08"), labels={1: label})
    part = three[1:]
    assert len(part) == 2 and (part.tokens, part.ids) == (b"\x07\x08\x08", b"bcd")
    assert part.offsets.tolist() == [0, 1, 3] and part.id_offsets.tolist() == [0, 2, 3] and part.labels == {0: label}
    assert part.row_hash.tolist() == three.row_hash[1:].tolist() and three[2:].labels == {}
    assert len(three[:0]) == 0 and three[:0].tokens == b""
