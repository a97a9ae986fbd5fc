"""A small made-up set of viral genomes and proteins whose labels can be learned from the sequence.

Everything follows from one integer: the same seed gives the same bytes on every machine. Genomes are chains of
genes, RNAs and regulatory elements joined by repeats typical of their order; proteins are chains of domains joined by
linkers typical of their order. Copies of an element differ by a few mutations, so no sequence occurs twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np

from lucavirus.errors import UserError
from lucavirus.files import replace_text

FILES: tuple[str, ...] = ("genomes.fasta", "genomes.gff3", "proteins.fasta", "labels.tsv")

GENOMES = 200
PROTEINS = 600
BASES = "ACGT"
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
LINE_WIDTH = 80
COMPLEMENT = str.maketrans("ACGT", "TGCA")

T = TypeVar("T")
Span = tuple[str, int, int, str]

# The standard genetic code, codons in TCAG order.
RESIDUE_OF_CODON = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
CODE = dict(zip(map("".join, product("TCAG", repeat=3)), RESIDUE_OF_CODON, strict=True))


@dataclass(frozen=True)
class Order:
    """A viral order: strand of its genes, third bases of codons by preference, spacer unit, linker residues."""

    name: str
    strand: str
    wobble: str
    repeat: str
    linker: str


ORDERS = (
    Order("Picornavirales", "+", "CTAG", "CTTTCCTCC", "GSP"),
    Order("Herpesvirales", "+", "GCTA", "CGGGGCCGC", "ARE"),
    Order("Mononegavirales", "-", "TAGC", "AAGAAATAA", "NKI"),
    Order("Nidovirales", "+", "TGAC", "GTTGTGATT", "TVQ"),
    Order("Piccovirales", "+", "ACGT", "CACACAACG", "DLH"),
)


@dataclass(frozen=True)
class Domain:
    """A protein domain: its consensus in residues, the site inside it and the keywords it brings."""

    name: str
    superfamily: str
    consensus: str
    site: str
    motif: str
    keywords: tuple[str, ...]


P_LOOP = "P-loop containing nucleoside triphosphate hydrolase"
DOMAINS = (
    Domain(
        "RNA-dependent RNA polymerase",
        "DNA/RNA polymerase superfamily",
        "FDADYSKWDSTIPKELLEFAMKYGCGVPSGDDNVVSVP",
        "RdRp active site GDD",
        "VPSGDDNVV",
        ("RNA-directed RNA polymerase", "Transferase"),
    ),
    Domain(
        "Superfamily 1 helicase",
        P_LOOP,
        "NVLVLGPPGTGKSTLAKALAEYYGARVVTLAPTHAAADEL",
        "Walker A motif",
        "GPPGTGKST",
        ("ATP-binding", "Hydrolase"),
    ),
    Domain(
        "Thymidine kinase",
        P_LOOP,
        "KIIFIEGNIGSGKSTLLRELEKYLDPRFVVVKEPVDLWR",
        "Walker A motif",
        "GNIGSGKST",
        ("ATP-binding", "Transferase"),
    ),
    Domain(
        "Peptidase C3",
        "Peptidase S1, PA clan",
        "NFVTMGTLGVYDRHAVIPTHAKPGDTVLLNAQPGYCGGVVL",
        "Cysteine peptidase active site",
        "QPGYCGGVV",
        ("Protease", "Hydrolase"),
    ),
    Domain(
        "Viral coat jelly roll",
        "Viral coat protein subunit",
        "ELQVTRWLPAGPQPAFRNDTPLNVYWGSMTLSVQFTGVPK",
        "Capsid conserved site",
        "PLNVYWGSM",
        ("Capsid protein", "Virion"),
    ),
    Domain(
        "Fusion glycoprotein",
        "Viral fusion glycoprotein ectodomain",
        "CNKTYHCEGRRRAKRSVFAGFIEGGWTGMIDGWYGYHHQN",
        "Furin cleavage site",
        "RRRAKRSVF",
        ("Glycoprotein", "Virion"),
    ),
)

# Feature type in the GFF3 -> consensus in bases.
ELEMENTS = (
    ("tRNA", "GCCCGGATAGCTCAGTCGGTAGAGCAGGGGATTGAAAATCCCCGTGTCCTTGGTTCGATTCCGAGTCCGGGCACCA"),
    ("ncRNA", "GGAAGGAGAAGCGGAGGAAGAGGCAAGGAGAGAAGGCGAAGGAGGAAGCAGGAGAAGGAGGCGAAGAGGA"),
    ("regulatory_region", "TATATTTATAATTTTATAAATATTCTATAATATTTATATAAAATTATATAAT"),
)


class Dice:
    """Integer draws from PCG64's raw 64-bit stream, which numpy keeps the same across versions and machines."""

    def __init__(self, seed: int) -> None:
        """Start the stream of `seed`, an integer >= 0."""
        self._raw = np.random.PCG64(seed).random_raw

    def below(self, limit: int) -> int:
        """Draw an integer in 0..limit-1."""
        return int(self._raw()) % limit

    def between(self, low: int, high: int) -> int:
        """Draw an integer in low..high, both included."""
        return low + self.below(high - low + 1)

    def percent(self, chance: int) -> bool:
        """Say yes `chance` times in a hundred."""
        return self.below(100) < chance

    def pick(self, items: Sequence[T]) -> T:
        """Draw one of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in a drawn order."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in items]


@dataclass
class Record:
    """A sequence with its labels; spans are (task or feature type, first, last, label), 0-based, both ends included.

    `taxonomy` is the order's name, empty where the labels do not tell it.
    """

    id: str
    order: Order
    taxonomy: str
    sequence: str
    spans: list[Span] = field(default_factory=list)
    keywords: list[str] = field(default_factory=list)


def write_demo(folder: Path, seed: int = 1111) -> None:
    """Write the four FILES into `folder`, which is made when absent; each appears complete or not at all."""
    if seed < 0:
        raise UserError(f"the seed is {seed}", where="--seed", hint="give an integer of 0 or more")
    dice = Dice(seed)
    genomes = [make_genome(dice, index) for index in range(GENOMES)]
    proteins = [make_protein(dice, index) for index in range(PROTEINS)]
    texts = (_fasta(genomes, "genome"), _gff3(genomes), _fasta(proteins, "protein"), _labels(genomes, proteins))
    for name, text in zip(FILES, texts, strict=True):
        replace_text(folder / name, text)


def make_genome(dice: Dice, index: int) -> Record:
    """Make the genome number `index` (from 0): 1 to 3 blocks of a gene, a tRNA, an ncRNA and a regulatory element."""
    order = ORDERS[index % len(ORDERS)]
    taxonomy = "" if index % 41 == 17 else order.name
    genome = Record(f"DEMO_G{index + 1:04d}", order, taxonomy, _spacer(dice, order))
    for _ in range(dice.between(1, 3)):
        genes = [("CDS", _gene(dice, order))]
        elements = [(kind, _mutated(dice, consensus, 3, BASES)) for kind, consensus in ELEMENTS]
        for kind, bases in dice.shuffled(genes + elements):
            first = len(genome.sequence)
            genome.spans.append((kind, first, first + len(bases) - 1, kind))
            genome.sequence += bases + _spacer(dice, order)
    if index % 23 == 13:
        genome.sequence = "N" * 12 + genome.sequence[12:]
    if index % 19 == 11:
        half = len(genome.sequence) // 2
        genome.sequence = genome.sequence[:half].lower() + genome.sequence[half:]
    return genome


def make_protein(dice: Dice, index: int) -> Record:
    """Make the protein number `index` (from 0): 1 to 3 different domains between linkers, with its keywords."""
    order = ORDERS[index % len(ORDERS)]
    taxonomy = "" if index % 41 == 17 else order.name
    protein = Record(f"DEMO_P{index + 1:04d}", order, taxonomy, "M" + _linker(dice, order, 11, 16))
    domains = dice.shuffled(DOMAINS)[: dice.pick((1, 1, 1, 1, 1, 1, 2, 2, 3))]
    for domain in domains:
        first = len(protein.sequence)
        protein.sequence += _mutated(dice, domain.consensus, 5, order.linker)
        last = len(protein.sequence) - 1
        site = first + domain.consensus.index(domain.motif)
        protein.spans += [
            ("prot_homo", first, last, domain.superfamily),
            ("prot_site", site, site + len(domain.motif) - 1, domain.site),
            ("prot_domain", first, last, domain.name),
        ]
        protein.sequence += _linker(dice, order, 10, 25)
    if index % 41 != 23:
        protein.keywords = sorted({word for domain in domains for word in domain.keywords})
    return protein


def _mutated(dice: Dice, consensus: str, percent: int, letters: str) -> str:
    return "".join(dice.pick(letters) if dice.percent(percent) else letter for letter in consensus)


def _spacer(dice: Dice, order: Order) -> str:
    return _mutated(dice, order.repeat * dice.between(2, 5), 3, BASES)


def _linker(dice: Dice, order: Order, low: int, high: int) -> str:
    length = dice.between(low, high)
    return "".join(dice.pick(RESIDUES if dice.percent(20) else order.linker) for _ in range(length))


def _gene(dice: Dice, order: Order) -> str:
    """Make a coding sequence of one domain, in bases: start codon, codons the order prefers, stop codon."""
    domain = _mutated(dice, dice.pick(DOMAINS).consensus, 5, order.linker)
    peptide = _linker(dice, order, 2, 6) + domain + _linker(dice, order, 2, 6)
    gene = "ATG" + "".join(_codon(dice, order, residue) for residue in peptide + "*")
    return gene if order.strand == "+" else gene[::-1].translate(COMPLEMENT)


def _codon(dice: Dice, order: Order, residue: str) -> str:
    codons = [codon for codon, meaning in CODE.items() if meaning == residue]
    if dice.percent(5):
        return dice.pick(codons)
    return min(codons, key=lambda codon: order.wobble.index(codon[2]))


def _fasta(records: Sequence[Record], molecule: str) -> str:
    lines = []
    for record in records:
        lines.append(f">{record.id} {record.taxonomy or 'unclassified'} demo {molecule}")
        lines += [record.sequence[i : i + LINE_WIDTH] for i in range(0, len(record.sequence), LINE_WIDTH)]
    return "\n".join(lines) + "\n"


def _gff3(genomes: Sequence[Record]) -> str:
    lines = ["##gff-version 3"]
    for genome in genomes:
        last = len(genome.sequence) - 1
        lines.append(f"##sequence-region {genome.id} 1 {last + 1}")
        lines.append(_gff3_row(genome.id, "region", 0, last, "+", ".", f"ID={genome.id}"))
        for number, span in enumerate(genome.spans, start=1):
            lines += _gff3_feature(genome.id, f"{genome.id}.{number}", span, genome.order.strand)
    return "\n".join(lines) + "\n"


def _gff3_feature(seqid: str, name: str, span: Span, gene_strand: str) -> list[str]:
    kind, first, last, _ = span
    if kind != "CDS":
        return [_gff3_row(seqid, kind, first, last, "+", ".", f"ID={kind}-{name}")]
    return [
        _gff3_row(seqid, "gene", first, last, gene_strand, ".", f"ID=gene-{name}"),
        _gff3_row(seqid, kind, first, last, gene_strand, "0", f"ID=cds-{name};Parent=gene-{name}"),
    ]


def _gff3_row(seqid: str, kind: str, first: int, last: int, strand: str, phase: str, attributes: str) -> str:
    return "\t".join((seqid, "demo", kind, str(first + 1), str(last + 1), ".", strand, phase, attributes))


def _labels(genomes: Sequence[Record], proteins: Sequence[Record]) -> str:
    rows = ["seq_id\ttask\tstart\tend\tlabel"]
    rows += [f"{genome.id}\tgene_taxonomy\t\t\t{genome.taxonomy}" for genome in genomes if genome.taxonomy]
    for protein in proteins:
        if protein.taxonomy:
            rows.append(f"{protein.id}\tprot_taxonomy\t\t\t{protein.taxonomy}")
        rows += [f"{protein.id}\tprot_keyword\t\t\t{word}" for word in protein.keywords]
        rows += [f"{protein.id}\t{task}\t{first}\t{last}\t{label}" for task, first, last, label in protein.spans]
    return "\n".join(rows) + "\n"
