"""CSV into records: each row once whatever the units, and every broken input told with its line; real files of both."""

from __future__ import annotations

import csv
import gzip
import io
import random
from pathlib import Path

import pytest

from lucavirus import blocks
from lucavirus.alphabet import encode
from lucavirus.blocks import Range, plan_units
from lucavirus.errors import UserError
from lucavirus.fasta import scan_ids
from lucavirus.record_batches import Record
from lucavirus.records import read_csv, read_unit
from tests.mistakes import mistake
from tests.reading import Write, bodies, fasta_mistake, flat, ranges, read_fasta, writer

SHARED = Path(__file__).parents[3] / "shared/data"
HEADER = b"obj_id,obj_type,obj_seq,obj_label\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer(tmp_path)


def csv_mistake(file: str) -> str:
    return mistake(lambda: list(read_csv(Range(file))))


def test_a_csv_whose_type_is_the_other_molecule_is_refused(write: Write) -> None:
    header = b"obj_id,obj_type,obj_seq,obj_label\n"
    bodies_of = {b"gene": b"MKNPKKKSGGFRIVNMLKRG", b"prot": b"AGTTGTTAGTCTACGTGGACCGACAAGG"}
    for kind, body in bodies_of.items():
        rows = b"".join(b"%s%d,%s,%s,\n" % (kind, n, kind, body) for n in range(4))
        message = csv_mistake(write(header + rows, "a.csv"))
        letters, other = ("amino acids", "prot") if kind == b"gene" else ("bases", "gene")
        assert f"a.csv:2: obj_type says {kind.decode()}, but the letters are {letters}" in message
        assert f"obj_type of such rows must be {other}" in message


def test_csv_by_hand(write: Write) -> None:
    content = (
        b"obj_label,obj_source, obj_id,obj_seq,obj_type\r\n"
        b'"{""seq_level"": {""gene_taxonomy"": 1}}",NCBI,"g,1",ACGT,gene\r\n'
        b"\r\n"
        b',,p1,"MKL",prot\r\n'
    )
    file = write(content, "a.csv")
    gene, protein = read_csv(Range(file))
    assert gene == Record("g,1", "gene", encode("gene", b"ACGT"), file, 47, '{"seq_level": {"gene_taxonomy": 1}}')
    assert (protein.id, protein.molecule, protein.tokens, protein.labels) == ("p1", "prot", encode("prot", b"MKL"), "")
    assert (gene.where, protein.where) == (f"{file}:2", f"{file}:4")
    assert list(flat(read_unit([Range(file)], None))) == [gene, protein]


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_every_file_of_a_unit_is_read(write: Write, packing: str) -> None:
    tables = [write(HEADER + b"%s,gene,ACGT,\n" % name, f"{name.decode()}.csv{packing}") for name in (b"a", b"b", b"c")]
    assert [record.id for record in flat(read_unit([*map(Range, tables)], None))] == ["a", "b", "c"]
    files = [write(b">%s\nACGT\n" % name, f"{name.decode()}.fa{packing}") for name in (b"a", b"b", b"c")]
    assert [record.id for record in flat(read_unit([*map(Range, files)], "gene"))] == ["a", "b", "c"]


def random_csv(dice: random.Random) -> tuple[bytes, list[tuple[str, str, bytes, str]]]:
    columns = ["obj_id", "obj_type", "obj_seq", "obj_label", "obj_source"][: dice.choice([4, 5])]
    dice.shuffle(columns)
    text, expected = io.StringIO(), []
    writer = csv.DictWriter(text, columns, lineterminator=dice.choice(["\n", "\r\n"]), extrasaction="ignore")
    writer.writeheader()
    for number in range(dice.randint(1, 8)):
        kind = dice.choice(["gene", "prot"])
        label = dice.choice(["", "{}", '{"a": "b,c"}', "{'é': [1, 2]}", 'a""b'])
        row = {"obj_id": f"i{number}", "obj_type": kind, "obj_seq": "ACG" * dice.randint(1, 9), "obj_label": label}
        writer.writerow({**row, "obj_source": "x"})
        expected.append((row["obj_id"], kind, encode(kind, row["obj_seq"].encode()), label))
    content = dice.choice([b"", b"\xef\xbb\xbf"]) + text.getvalue().encode()
    return (content.rstrip(b"\r\n") if dice.random() < 0.5 else content), expected


@pytest.mark.parametrize("block", [1, 50, blocks.BLOCK])
def test_csv_units_of_any_size_give_each_row_once(write: Write, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    monkeypatch.setattr("lucavirus.records.GATHERED", block)
    dice = random.Random(block)
    for _ in range(12):
        content, expected = random_csv(dice)
        file, packed = write(content, "a.csv"), write(content, "a.csv.gz")
        for size in (1, 2, 7, 33, len(content) - 1, len(content)):
            found = [record for unit in plan_units([file], size) for record in flat(read_unit(unit, None))]
            assert [(r.id, r.molecule, r.tokens, r.labels) for r in found] == expected, (content, size)
        assert [r.id for r in read_csv(Range(packed))] == [name for name, *_ in expected]


def test_csv_fields_may_be_long(write: Write) -> None:
    file = write(HEADER + b'long,gene,"' + b"ACGT" * 300_000 + b'",\n', "a.csv")
    assert [len(record.tokens) for record in read_csv(Range(file))] == [1_200_000]


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b"", 1, "is empty: there is no header"),
        (HEADER, None, "has a header but no rows"),
        (HEADER.rstrip() + b"\r\n\r\n", None, "has a header but no rows"),
        (b"obj_id,obj_type,obj_seq\na,gene,ACGT\n", 1, "the header must have the column obj_label once"),
        (b"id,type,seq,obj_label\na,gene,ACGT,\n", 1, "the header must have the column obj_id, obj_type, obj_seq once"),
        (b"obj_id," + HEADER + b"a,a,gene,ACGT,\n", 1, "the header must have the column obj_id once"),
        (b"a,gene,ACGT,\n", 1, "the header must have the column"),
        (HEADER + b"a,gene,ACGT,\nb,gene,ACGT\n", 3, "the row has 3 fields, the header has 4"),
        (HEADER + b"a,gene,ACGT,{'a': 1, 'b': 2}\n", 2, "the row has 5 fields, the header has 4"),
        (HEADER + b"a,gene,ACGT,\nb,dna,ACGT,\n", 3, "obj_type of b is 'dna'"),
        (HEADER + b"a,gene,ACGT,\nb,,ACGT,\n", 3, "obj_type of b is ''"),
        (HEADER + b"a,gene,ACGT,\nb,gene,,\n", 3, "the sequence b has no residues"),
        (HEADER + b'a,gene,ACGT,\nb,gene,"  ",\n', 3, "the sequence b has no residues"),
        (HEADER + b"a,gene,ACGT,\n,gene,ACGT,\n", 3, "the row has no obj_id"),
        (HEADER + b'a,gene,ACGT,\nb,gene,ACGT,"{\n}"\n', 3, "malformed row"),
        (HEADER + b'a,gene,ACGT,\nb,gene,ACGT,"{"a"}"\n', 3, "malformed row"),
        (HEADER + b"a,gene,ACGT,\nb,gene,AC\rGT,\n", 3, "malformed row"),
        (HEADER + b"a,gene,ACGT,\nb\xe9,gene,ACGT,\n", 3, "the line is not valid UTF-8"),
        (HEADER + "a,gene,ACGT,\nb,gene,AC–GT,\n".encode(), 3, "the sequence b has a character that is not ASCII"),
        (HEADER + b"a,gene,ACGT,\nb,gene,AC\0GT,\n", 3, "is not text"),
        (b"obj_id\0\n", 1, "is not text"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_broken_csv(write: Write, name: str, content: bytes, line: int | None, what: str) -> None:
    file = write(content, name)
    where = file if line is None else f"{file}:{line}"
    assert csv_mistake(file).startswith(f"{where}: {what}")


def test_no_row_ends_the_file_silently(write: Write) -> None:
    """The original stopped at the first malformed row and served what came before it."""
    rows = b"".join(b"g%d,gene,ACGT,\n" % n for n in range(20))
    file = write(HEADER + rows.replace(b"g5,gene", b"g5;gene"), "a.csv")
    seen = []
    with pytest.raises(UserError, match=":7: the row has 3 fields"):
        for record in read_csv(Range(file)):
            seen.append(record.id)
    assert seen == [f"g{n}" for n in range(5)]


# real data -------------------------------------------------------------------------------------------------------


def shared(name: str) -> str:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"no shared data at {path}")
    return str(path)


@pytest.mark.parametrize(
    ("name", "kind", "count", "residues"),
    [
        ("viruses/genomes.fasta.gz", "gene", 681, 7_469_816),
        ("viruses/proteins.fasta.gz", "prot", 248, 100_829),
        ("openvirus/gene.fasta.gz", "gene", 1000, 2_527_880),
        ("openvirus/prot.fasta.gz", "prot", 2000, 656_929),
    ],
)
def test_real_fasta(name: str, kind: str, count: int, residues: int, tmp_path: Path) -> None:
    file = shared(name)
    found = bodies(read_fasta(Range(file), kind))  # type: ignore[arg-type]
    assert len(found) == len(dict(found)) == count
    assert sum(len(body) for _, body in found) == residues
    assert list(scan_ids(file)) == [name for name, _ in found]
    plain = tmp_path / "plain.fasta"
    plain.write_bytes(gzip.decompress(Path(file).read_bytes()))
    parts = ranges(str(plain), 100_003)
    assert bodies(record for part in parts for record in read_fasta(part, kind)) == found  # type: ignore[arg-type]
    other = "prot" if kind == "gene" else "gene"
    assert f"write `kind: {kind}`" in fasta_mistake(file, other)


def test_real_csv_holds_the_sequences_of_the_fasta() -> None:
    rows = [record for part in ("0", "1") for record in read_csv(Range(shared(f"openvirus/part_0{part}.csv.gz")))]
    assert len(rows) == 3000
    for kind in ("gene", "prot"):
        fasta = dict(bodies(read_fasta(Range(shared(f"openvirus/{kind}.fasta.gz")), kind)))
        assert dict(bodies(record for record in rows if record.molecule == kind)) == fasta
