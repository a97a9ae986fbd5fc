"""The 39 tokens, and residues to ids: the reference's own examples, and what a wrong table would get wrong."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucavirus import alphabet
from lucavirus.alphabet import encode, letters, mistaken

PARITY = Path(os.environ.get("PARITY_FIXTURE", Path(__file__).parents[3] / "shared/fixtures/parity_a"))

PROTEIN = b"MKNPKKKSGGFRIVNMLKRGVARVSPFGGLKRLPAGLLLGHGPIRMVLAILAFLRFTAIKPSLGLINRWGSVGKKEAMEIIKKFKKDLAAML"
GENOME = b"AGTTGTTAGTCTACGTGGACCGACAAGGACAGTTTCGAATCGGAAGCTTGCTTAACGTAGTTCTAACAGTTTTTTTAATTAGAGAGCAGATCTCTG"


def reference() -> dict[str, Any]:
    path = PARITY / "tokenisation.json"
    if not path.exists():
        pytest.skip(f"no parity fixture at {path} (set PARITY_FIXTURE)")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_tokens_stand_in_the_order_of_the_reference() -> None:
    assert list(alphabet.TOKENS) == reference()["vocab"]
    numbers = (alphabet.PAD, alphabet.UNK, alphabet.CLS, alphabet.SEP, alphabet.MASK)
    assert reference()["special"] == dict(zip(alphabet.SPECIALS, numbers, strict=True))


def test_every_item_of_the_reference_gets_its_ids() -> None:
    items = [item for item in reference()["items"] if isinstance(item["ids"], list)]
    assert len(items) == 100
    for item in items:
        assert list(encode(item["type"], item["seq"].encode())) == item["ids"], item["seq"][:40]


def test_unknown_protein_characters_where_the_reference_raises() -> None:
    for case in reference()["unknown_prot_char"]:
        if isinstance(case["result"], dict):
            ids = list(encode("prot", case["seq"].encode()))
            assert len(ids) == len(case["seq"])
    # A digit is the token of a base in the reference's table; in a protein it is unknown.
    assert list(encode("prot", b"M1K9?")) == [26, alphabet.UNK, 21, alphabet.UNK, alphabet.UNK]


def test_tokens_written_out() -> None:
    assert len(alphabet.TOKENS) == 39
    assert alphabet.TOKENS.index("1") == 5 and alphabet.TOKENS.index("L") == 10 and alphabet.TOKENS.index("*") == 38
    assert list(encode("gene", b"ACGTUacgtu")) == [5, 7, 8, 6, 6] * 2
    assert set(encode("gene", b"NnRYKMSWBDHV-.*X12345?[]\xc3")) == {9}
    assert list(encode("prot", b"J.-*xO")) == [35, 36, 37, 38, 30, 34]


@pytest.mark.parametrize("molecule", ["gene", "prot"])
def test_every_byte_is_a_token_a_blank_or_unknown(molecule: Any) -> None:
    specials = {alphabet.PAD, alphabet.CLS, alphabet.SEP, alphabet.MASK}
    for code in range(256):
        ids = encode(molecule, bytes([code]))
        if bytes([code]) in b" \t\r\n\x0b\x0c":
            assert ids == b""
            continue
        assert len(ids) == 1 and ids[0] not in specials
        if molecule == "prot" and chr(code).upper() not in "LAGVSERTIDPKQNFYMHWCXBUZOJ.-*":
            assert ids[0] == alphabet.UNK
        elif molecule == "prot":
            assert alphabet.TOKENS[ids[0]] == chr(code).upper()


def test_bracketed_token_names_are_not_special_in_a_sequence() -> None:
    brackets = encode("prot", b"[PAD]")
    assert [alphabet.TOKENS[i] for i in brackets] == ["[UNK]", "P", "A", "D", "[UNK]"]


def test_line_ends_and_blanks_vanish() -> None:
    assert encode("gene", b"AC\r\nGT\n\n AC\tG\n") == encode("gene", b"ACGTACG")
    assert encode("prot", b"\nMK\r\n L\n") == encode("prot", b"MKL")
    assert encode("prot", b"") == b""


def test_letters_are_the_molecules_own() -> None:
    assert letters("gene").tolist() == [5, 6, 7, 8] and letters("gene").dtype == np.uint8
    assert "".join(sorted(alphabet.TOKENS[i] for i in letters("prot"))) == "ACDEFGHIKLMNPQRSTVWY"


def test_encoding_is_one_table_look_up() -> None:
    sequence = (b"ACGTNacgtu" * 8 + b"\n") * 250_000
    best = min(_seconds(sequence) for _ in range(3))
    assert len(sequence) / best > 150e6  # bytes a second; measured 1.3e9, a loop would reach 1e7


def _seconds(sequence: bytes) -> float:
    start = time.perf_counter()
    encode("gene", sequence)
    return time.perf_counter() - start


@pytest.mark.parametrize(
    ("molecule", "residues", "expected"),
    [
        ("gene", PROTEIN, True),
        ("gene", PROTEIN[:30].lower(), True),
        ("gene", b"MKL", False),  # too little to judge
        ("gene", b"X" * 400 + PROTEIN + b"N" * 400, True),
        ("gene", GENOME, False),
        ("gene", b"N" * 9000 + GENOME, False),
        ("gene", b"X" * 9000 + GENOME, False),
        ("gene", b"RYSWKMBDHVN-" * 100, False),  # IUPAC codes
        ("gene", GENOME.replace(b"T", b"U"), False),
        ("prot", GENOME, True),
        ("prot", GENOME.lower().replace(b"t", b"u"), True),
        ("prot", b"N" * 50 + GENOME, True),
        ("prot", GENOME[:40], True),
        ("prot", GENOME[:10], False),  # a short peptide may look like anything
        ("prot", PROTEIN, False),
        ("prot", b"GAGAGS" * 300, False),  # silk
        ("prot", b"GATA" * 300, False),  # no C: not all four bases
        ("prot", b"N" * 5000, False),
        ("prot", b"X" * 5000 + GENOME, False),
        ("prot", b"", False),
        ("gene", b"", False),
    ],
)
def test_kind_is_doubted_only_where_letters_are_clear(molecule: Any, residues: bytes, expected: bool) -> None:
    assert mistaken(molecule, residues) is expected
