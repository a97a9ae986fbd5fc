"""GFF3 and TSV: positions and classes written out by hand, and every bad row told with its line."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucavirus.annotations import (
    GENE_TYPES,
    GFF3_TYPES,
    read_annotations,
    read_lines,
)
from lucavirus.errors import UserError
from tests.mistakes import mistake

ROOT = Path(__file__).parents[3]
SHARED = ROOT / "shared/data"
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(content: str | bytes, name: str) -> str:
        path = tmp_path / name
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return _write


def rows(*files: str, types: dict[str, str | None] | None = None) -> list[tuple[Any, ...]]:
    return [(row.line, row.id, row.task, row.label, row.span) for row in read_annotations(files, types or {})]


# GFF3 ------------------------------------------------------------------------------------------------------------

GFF3 = """##gff-version 3
#!processor by hand
seq%7C1%20x\tRefSeq\tregion\t1\t3000\t.\t+\t.\tID=r
seq%7C1%20x\tRefSeq\tCDS\t1\t90\t.\t+\t0\tID=c%3B1

g2\t.\tpromoter\t5\t5\t.\t-\t.\t.
# CDS in a comment
g2\t.\tsnoRNA \t7\t9\t.\t-\t.\t.
g2\t.\tfive_prime_UTR\t1\t4\t.\t-\t.\t.
g2\t.\tmat_peptide\t1\t4\t.\t-\t.\t.
g2\t.\tfive_prime_UTR\t1\t4\t.\t-\t.\t.
##FASTA
>g2
ACGT
"""


@pytest.mark.parametrize("name", ["a.gff3", "a.gff", "a.gff3.gz", "a.gff.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_gff3_by_hand(write: Write, name: str, end: str) -> None:
    file = write(GFF3.replace("\n", end), name)
    left_out: dict[str, Counter[str]] = {}
    found = list(read_annotations([file], {"mat_peptide": None}, left_out))
    assert [(row.line, row.id, row.task, row.label, row.span) for row in found] == [
        (4, "seq|1 x", "gene_type", "CDS", (0, 89)),
        (6, "g2", "gene_type", "regulatory", (4, 4)),
        (8, "g2", "gene_type", "ncRNA", (6, 8)),
    ]
    assert found[0].where == f"{file}:4"
    assert left_out == {file: Counter({"five_prime_UTR": 2, "region": 1})}


def test_gff3_types_add_to_and_override_the_own_ones(write: Write) -> None:
    file = write(GFF3, "a.gff3")
    types: dict[str, str | None] = {"five_prime_UTR": "UTR", "promoter": None, "snoRNA": "misc_RNA"}
    assert [row[3] for row in rows(file, types=types)] == ["CDS", "misc_RNA", "UTR", "UTR"]


def test_gff3_ends_where_sequences_begin(write: Write) -> None:
    assert rows(write("g\t.\tCDS\t1\t3\t.\t+\t0\t.\n>g\nA\tC\n", "a.gff3")) == [(1, "g", "gene_type", "CDS", (0, 2))]


def test_features_of_a_circular_genome_may_run_over_its_end(write: Write) -> None:
    file = write(
        "c%7C1\t.\tregion\t1\t100\t.\t+\t.\tID=c;Is_circular=true;x=1\n"
        "c%7C1\t.\tCDS\t91\t101\t.\t+\t0\t.\n"
        "c%7C1\t.\tCDS\t101\t105\t.\t+\t0\t.\n"
        "c%7C1\t.\tCDS\t91\t100\t.\t+\t0\t.\n"
        "d\t.\tCDS\t91\t105\t.\t+\t0\t.\n",
        "a.gff3",
    )
    assert [row[4] for row in rows(file)] == [(90, 99), (0, 0), (0, 4), (90, 99), (90, 104)]


@pytest.mark.parametrize(
    ("kind", "start", "attributes", "moved"),
    [
        ("circRNA", 900, "ID=x;Is_circular=true", False),
        ("circRNA", 1, "ID=g1;Is_circular=true", False),
        ("region", 900, "ID=x;Is_circular=true", False),
        ("region", 1, "ID=g:1..1700;Is_circular=true", True),
        ("chromosome", 1, "Is_circular=true", True),
        ("contig", 1, "Is_circular=true;ID=g ", True),
    ],
)
def test_only_the_row_of_the_whole_sequence_makes_it_a_circle(
    write: Write, kind: str, start: int, attributes: str, moved: bool
) -> None:
    content = f"g\t.\t{kind}\t{start}\t1700\t.\t+\t.\t{attributes}\ng\t.\tCDS\t1600\t1800\t.\t+\t0\t.\n"
    spans = [row[4] for row in rows(write(content, "a.gff3")) if row[3] == "CDS"]
    assert spans == ([(1599, 1699), (0, 99)] if moved else [(1599, 1799)])


def test_columns_of_other_names_are_told_where_spans_need_them(write: Write) -> None:
    file = write("seq_id\ttask\tStart\tend\tlabel\na\tgene_type\t0\t3\tCDS\n", "x.tsv")
    with pytest.raises(UserError, match=r":2: gene_type labels spans, and the header has no column start\n"):
        list(read_annotations([file], {}))


def test_line_ends_of_an_old_mac_are_refused(write: Write) -> None:
    file = write("##gff-version 3\rg\t.\tCDS\t1\t3\t.\t+\t0\t.\r", "a.gff3")
    assert "a.gff3:1: has a carriage return within a line" in mistake(lambda: rows(file))


def test_the_map_of_feature_types_names_each_class_itself() -> None:
    assert list(GENE_TYPES) == ["CDS", "intron", "misc_RNA", "ncRNA", "rRNA", "regulatory", "tRNA", "tmRNA"]
    assert all(GFF3_TYPES[name] == name for name in GENE_TYPES)
    for kind in ("regulatory_region", "promoter", "enhancer", "terminator", "polyA_signal_sequence", "TATA_box"):
        assert GFF3_TYPES[kind] == "regulatory"
    for kind in ("lncRNA", "lnc_RNA", "snRNA", "miRNA", "antisense_RNA", "SRP_RNA"):
        assert GFF3_TYPES[kind] == "ncRNA"
    assert sum(len(kinds.split()) for kinds in GENE_TYPES.values()) == len(GFF3_TYPES)
    assert not {"gene", "mRNA", "exon", "region", "source", "five_prime_UTR"} & set(GFF3_TYPES)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("g\t.\tCDS\t1\t9\t.\t+\t0", "the row has 8 columns"),
        ("g . CDS 1 9 . + 0 x", "the row has 1 columns"),
        ("g\t.\tCDS\tone\t9\t.\t+\t0\t.", "start 'one' and end '9' must both be numbers"),
        ("g\t.\tCDS\t1\t\t.\t+\t0\t.", "start '1' and end '' must both be numbers"),
        ("g\t.\tCDS\t1\t9.5\t.\t+\t0\t.", "start '1' and end '9.5' must both be numbers"),
        ("g\t.\tCDS\t9\t3\t.\t-\t0\t.", "start 9 is after end 3"),
        ("g\t.\tCDS\t0\t3\t.\t+\t0\t.", "start 0 is before the first position, 1"),
        ("g\t.\tCDS\t-4\t3\t.\t+\t0\t.", "start -4 is before the first position, 1"),
        ("g\t.\tgene\t9\t3\t.\t-\t0\t.", "start 9 is after end 3"),
    ],
)
def test_bad_gff3(write: Write, row: str, what: str) -> None:
    file = write(f"##gff-version 3\ng\t.\tCDS\t1\t3\t.\t+\t0\t.\n{row}\n", "a.gff3")
    assert mistake(lambda: rows(file)).startswith(f"{file}:3: {what}")


def test_a_circle_of_absurd_length_is_a_mistake_too(write: Write) -> None:
    # Python refuses to read numbers of more than 4,300 digits.
    file = write(f"g\t.\tregion\t1\t{'9' * 5000}\t.\t+\t.\tID=g;Is_circular=true\n", "a.gff3")
    assert mistake(lambda: rows(file)).startswith(f"{file}:1: start '1' and end '999")


# TSV -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz", "labels"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tsv_by_hand(write: Write, name: str, end: str) -> None:
    text = (
        "\ufefflabel\tnote\tend\tseq_id\ttask\tstart\n"
        'Zinc finger, "C2H2"\tx\t4\tp|1\tprot_domain\t0\n'
        "\n"
        "ATP-binding\t\t\tp|1\tprot_keyword\t\n"
        '"Say ""hi"""\t\t\tp|1\tprot_keyword\t\n'
        "Piccovirales \t\t\tp|1\tprot_taxonomy\t\n"
        "Late\t\t9.0\tp|1\tprot_site\t7.0\n"
        "Piccovirales\t\t\tp|1\tprot_taxonomy\t"
    )
    assert rows(write(text.replace("\n", end), name)) == [
        (2, "p|1", "prot_domain", 'Zinc finger, "C2H2"', (0, 4)),
        (4, "p|1", "prot_keyword", "ATP-binding", None),
        (5, "p|1", "prot_keyword", 'Say "hi"', None),
        (6, "p|1", "prot_taxonomy", "Piccovirales", None),
        (7, "p|1", "prot_site", "Late", (7, 9)),
        (8, "p|1", "prot_taxonomy", "Piccovirales", None),
    ]


def test_tsv_without_positions(write: Write) -> None:
    file = write("seq_id\ttask\tlabel\na\tgene_taxonomy\tX\n", "a.tsv")
    assert rows(file) == [(2, "a", "gene_taxonomy", "X", None)]


FULL = "seq_id\ttask\tstart\tend\tlabel\na\tgene_taxonomy\t\t\tX\n"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("a\tgene_tpye\t1\t2\tCDS", "there is no task gene_tpye; did you mean gene_type?"),
        ("a\tgene_mask\t\t\tCDS", "there is no task gene_mask"),
        ("a\t\t1\t2\tCDS", "task is empty"),
        ("\tgene_type\t1\t2\tCDS", "seq_id is empty"),
        ("a\tgene_type\t1\t2\t ", "label is empty"),
        ("a\tgene_type\t1\t\tCDS", "start '1' and end '' must both be numbers"),
        ("a\tgene_type\t1\t2_0\tCDS", "start '1' and end '2_0' must both be numbers"),
        ("a\tgene_type\t1\t9223372036854775808\tCDS", "start '1' and end '9223372036854775808' must both be numbers"),
        ("a\tgene_type\t1.5\t2\tCDS", "start '1.5' and end '2' must both be numbers"),
        ("a\tgene_type\t3\t2\tCDS", "start 3 is after end 2"),
        ("a\tgene_type\t\t\tCDS", "gene_type labels spans, but start and end are empty"),
        ("a\tgene_type\t1\t\tCDS", "start '1' and end '' must both be numbers"),
        ("a\tgene_type\t-1\t2\tCDS", "start -1 is before the first position, 0"),
        ("a\tprot_taxonomy\t\t2\tX", "prot_taxonomy labels whole sequences, but here is a span"),
        ("a\tgene_taxonomy\t\t\tY", "a is Y here, but X before"),
        ("a\tgene_taxonomy\t\tX", "the row has 4 columns, the header has 5"),
        ('a\tgene_type\t1\t2\t"CDS', "malformed row"),
    ],
)
def test_bad_tsv(write: Write, row: str, what: str) -> None:
    file = write(f"{FULL}{row}\n", "a.tsv")
    assert mistake(lambda: rows(file)).startswith(f"{file}:3: {what}")


def test_two_classes_are_told_across_files_but_not_across_tasks_or_sequences(write: Write) -> None:
    first = write(FULL, "a.tsv")
    other = write(FULL + "b\tgene_taxonomy\t\t\tY\na\tprot_taxonomy\t\t\tY\n", "b.tsv")
    assert len(rows(first, other)) == 4
    third = write(FULL.replace("\tX", "\tZ"), "c.tsv")
    assert mistake(lambda: rows(first, other, third)).startswith(f"{third}:2: a is Z here, but X before")
    assert len(rows(first, first)) == 1  # the same file twice is one file


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        (b"", "", "is empty: there is no header"),
        (b"seq_id\ttask\nx\ty\n", ":1", "the header must have the column label once, and not seq_id, task\n"),
        (b"seq_id,task,label\n", ":1", "the header must have the column seq_id, task, label once"),
        (b"seq_id\ttask\tlabel\tlabel\n", ":1", "the header must have the column label once"),
        (b"seq_id\ttask\tlabel\na\tgene_taxonomy\tcaf\xe9\n", ":2", "the line is not valid UTF-8"),
        (b"seq_id\ttask\tlabel\na\tgene_taxonomy\tca\0\n", ":2", "is not text"),
    ],
)
def test_bad_tsv_files(write: Write, content: bytes, where: str, what: str) -> None:
    file = write(content, "a.tsv")
    assert mistake(lambda: rows(file)).startswith(f"{file}{where}: {what}")


@pytest.mark.parametrize(("coding", "named"), [("utf-16", "utf-16"), ("latin1", "latin1")])
def test_how_a_file_becomes_utf_8_is_told(write: Write, coding: str, named: str) -> None:
    file = write("caf\xe9\ttask\n".encode(coding), "a.tsv")
    assert f"`iconv -f {named} -t utf-8`" in mistake(lambda: rows(file))


def test_cut_annotation_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gff3.gz"
    path.write_bytes(gzip.compress(("g\t.\tCDS\t1\t3\t.\t+\t0\t.\n" * 500).encode())[:-20])
    assert mistake(lambda: rows(str(path))).startswith(f"{path}: cannot be read (Compressed file ended")


def test_lines_end_at_line_feeds_only(write: Write) -> None:
    file = write("\ufeffa\u2028b\x0b\x0c\nc\r\n\nd", "a.txt")
    assert list(read_lines(file)) == [(1, "a\u2028b\x0b\x0c"), (2, "c"), (3, ""), (4, "d")]


# real data -------------------------------------------------------------------------------------------------------


def shared(name: str) -> str:
    if not (SHARED / name).exists():
        pytest.skip(f"no shared data at {SHARED / name}")
    return str(SHARED / name)


def test_real_gff3() -> None:
    left_out: dict[str, Counter[str]] = {}
    file = shared("viruses/genomes.gff3.gz")
    found = list(read_annotations([file], {}, left_out))
    assert Counter(row.label for row in found) == {"CDS": 397, "regulatory": 13}
    assert left_out[file].total() == 754 - 410 and left_out[file]["gene"] == 281
    assert found[0].id == "zika|ref" and all(row.id.endswith("|ref") for row in found)


def test_real_tsv() -> None:
    counts = Counter(row.task for row in read_annotations([shared("viruses/labels.tsv")], {}))
    assert counts == {"gene_taxonomy": 681, "prot_taxonomy": 248}
