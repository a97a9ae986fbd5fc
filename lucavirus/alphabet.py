"""The alphabet of 39 tokens, and residues to token ids by table look-up (SPEC section 1)."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lucavirus.tasks import Molecule

SPECIALS: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKENS: tuple[str, ...] = (*SPECIALS, *"12345", *"LAGVSERTIDPKQNFYMHWCXBUZOJ.-*")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIALS))

# Bases are the tokens 1 to 4; N, IUPAC codes, gaps and everything else are the token 5.
BASES: dict[str, str] = {"A": "1", "T": "2", "U": "2", "C": "3", "G": "4"}
OTHER_BASE: int = TOKENS.index("5")
AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"

Bytes = TypeVar("Bytes", bytes, bytearray)

_BLANKS = b" \t\r\n\x0b\x0c"

# Fewer letters than these say nothing about the molecule.
_ENOUGH: dict[str, int] = {"gene": 8, "prot": 12}


def encode(molecule: Molecule, sequence: Bytes) -> Bytes:
    """Turn raw residues, in which line ends and blanks may stand, into token ids.

    Returns one byte a residue (uint8 ids, body only: no [CLS], no [SEP]); `len` of it is the length of the sequence.
    Case is ignored. Nothing fails: a gene's unknown character becomes the token 5, a protein's [UNK].
    """
    return sequence.translate(_TABLES[molecule], _BLANKS)


def letters(molecule: Molecule) -> npt.NDArray[np.uint8]:
    """Give the ids of the molecule's own letters: the tokens 1 to 4, or the 20 standard amino acids (uint8, (n,))."""
    own = "1234" if molecule == "gene" else AMINO_ACIDS
    return np.array([TOKENS.index(letter) for letter in own], dtype=np.uint8)


def mistaken(molecule: Molecule, residues: bytes) -> bool:
    """Tell whether residues called `molecule` can only be those of the other one; in doubt, False.

    Meant for some thousand residues: genomes of many N and proteins of few kinds of letters pass.
    """
    text = residues.decode("ascii", "ignore").upper()
    counts = {letter: text.count(letter) for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    total = sum(counts.values())
    if molecule == "gene":
        # N and X fill genomes; the letters that no nucleotide code uses are a third of any protein.
        known = total - counts["N"] - counts["X"]
        return known >= _ENOUGH["gene"] and sum(counts[letter] for letter in "EFILPQJOZ") > 0.2 * known
    # All four bases must occur: a protein may well be a long run of glycine and alanine.
    bases = [counts["A"], counts["C"], counts["G"], counts["T"] + counts["U"]]
    return total >= _ENOUGH["prot"] and sum(bases) + counts["N"] >= 0.95 * total and min(bases) >= 0.02 * total


def _table(ids: dict[str, int], other: int) -> bytes:
    """A 256-entry table for bytes.translate, both cases alike."""
    table = bytearray([other] * 256)
    for letter, number in ids.items():
        table[ord(letter.upper())] = table[ord(letter.lower())] = number
    return bytes(table)


# The tokens 1 to 5 are bases, and the specials are not letters: in a protein these characters are unknown.
_TABLES: dict[str, bytes] = {
    "gene": _table({base: TOKENS.index(token) for base, token in BASES.items()}, OTHER_BASE),
    "prot": _table({token: number for number, token in enumerate(TOKENS) if number > OTHER_BASE}, UNK),
}
