"""FASTA into records: each record once whatever the units, and every broken input told with its line."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from lucavirus import blocks
from lucavirus.alphabet import encode
from lucavirus.blocks import Range, plan_units
from lucavirus.errors import UserError
from lucavirus.fasta import scan_ids
from tests.reading import Write, bodies, fasta_mistake, ranges, read_fasta, writer


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer(tmp_path)


def test_fasta_by_hand(write: Write) -> None:
    file = write(b">a first one\nACGT\nAC\n>b\tsecond > of 2\n\nG\n")
    first, second = read_fasta(Range(file), "gene")
    assert (first.id, first.tokens, first.molecule, first.where) == (
        "a",
        encode("gene", b"ACGTAC"),
        "gene",
        f"{file}:1",
    )
    assert (second.id, second.tokens, second.where) == ("b", encode("gene", b"G"), f"{file}:4")
    assert first.labels is None


@pytest.mark.parametrize("name", ["a.fasta", "a.fasta.gz"])
@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf>a\nACGT\n>b\nGG\n",
        b"\xef\xbb\xbf\n>a\nACGT\n>b\nGG\n",
        b">a\r\nAC\r\nGT\r\n>b\r\nGG\r\n",
        b"\n\n>a x\n\nAC\n\nGT\n\n\n>b\nGG",
        b"\r\n>a\r\nACGT\r\n\r\n>b\r\nGG\r\n\r\n",
        b"> a\nACGT\n>b >c\nGG\n",
        b">a \xc3\xa9>\nACGT\n>b\nG G\n",
    ],
)
def test_fasta_of_many_habits(write: Write, name: str, content: bytes) -> None:
    file = write(content, name)
    expected = [("a", encode("gene", b"ACGT")), ("b", encode("gene", b"GG"))]
    assert bodies(read_fasta(Range(file), "gene")) == expected
    assert list(scan_ids(file)) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "is empty: there is no sequence in it"), (b"LOCUS x\n", "text before the first header")]
)
def test_ids_are_not_looked_for_in_what_is_no_fasta(write: Write, content: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        list(scan_ids(write(content)))


def random_fasta(dice: random.Random) -> tuple[bytes, list[tuple[str, bytes]]]:
    """A FASTA with all that is allowed in it, and what must be read."""
    end = dice.choice([b"\n", b"\r\n"])
    content, expected = dice.choice([b"", b"\xef\xbb\xbf", end, b"\xef\xbb\xbf" + end]), []
    for number in range(dice.randint(1, 8)):
        name = f"s{number}" + dice.choice(["", ">", ">x", "|é"])
        title = dice.choice(["", " > again", " a >b", "\t>"])
        lines = [bytes(dice.choices(b"ACGTN-", k=dice.randint(0, 12))) for _ in range(dice.randint(0, 5))]
        lines.append(bytes(dice.choices(b"ACGT", k=dice.randint(1, 9))))
        lines += [b""] * dice.choice([0, 0, 1, 3])
        content += b">" + f"{name}{title}".encode() + end + b"".join(line + end for line in lines)
        expected.append((name, encode("gene", b"".join(lines))))
    return (content.rstrip(b"\r\n") if dice.random() < 0.5 else content), expected


@pytest.mark.parametrize("block", [1, 3, 64, blocks.BLOCK])
def test_units_of_any_size_give_each_record_once(write: Write, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    dice = random.Random(block)
    for _ in range(12):
        content, expected = random_fasta(dice)
        file = write(content)
        assert list(scan_ids(file)) == [name for name, _ in expected]
        for size in (1, 2, 3, 5, 7, 16, len(content) - 1, len(content), len(content) + 9):
            parts = ranges(file, size)
            found = [list(read_fasta(part, "gene")) for part in parts]
            assert bodies(record for records in found for record in records) == expected, (content, size)
            for part, records in zip(parts, found, strict=True):
                assert all(part.start <= record.offset < part.end for record in records)
                assert all(content[record.offset :].startswith(f">{record.id}".encode()) for record in records)


def test_a_record_far_longer_than_a_block(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    lines = b"".join(b"ACGTACGTAC" * 8 + b"\n" for _ in range(2000))
    file = write(b">long\n" + lines + b">next\nAC\n>one_line\n" + b"G" * 50_000)
    sequences = {"long": lines, "next": b"AC", "one_line": b"G" * 50_000}
    expected = [(name, encode("gene", sequence)) for name, sequence in sequences.items()]
    assert bodies(read_fasta(Range(file), "gene")) == expected
    assert bodies(record for part in ranges(file, 999) for record in read_fasta(part, "gene")) == expected


def test_units_are_equal_ranges(write: Write) -> None:
    plain, packed, empty = write(b">a\nACGTACGT\n"), write(b">a\nAC\n", "b.fasta.gz"), write(b"", "c.fasta")
    assert plan_units([plain, packed, empty], 5) == [
        [Range(plain, 0, 4)], [Range(plain, 4, 8)], [Range(plain, 8, 12)], [Range(packed, 0, 0)], [Range(empty, 0, 0)],
    ]  # fmt: skip
    assert plan_units([plain], 6) == [[Range(plain, 0, 6)], [Range(plain, 6, 12)]]


def test_small_files_share_units_up_to_an_eighth_of_the_size(write: Write) -> None:
    plain = [write(b">x\nACGTAC\n", f"{name}.fasta") for name in "abcdefg"]  # of 10 bytes
    large, empty = write(b">x\n" + b"A" * 300, "large.fasta"), write(b"", "empty.fasta")
    units = plan_units([*plain[:4], large, empty, *plain[4:]], 240)
    assert [[(part.file, part.start, part.end) for part in unit] for unit in units] == [
        [(file, 0, 10) for file in plain[:3]],
        [(plain[3], 0, 10)],
        [(large, 0, 151)],
        [(large, 151, 303)],
        [(empty, 0, 0), *((file, 0, 10) for file in plain[4:])],
    ]
    assert plan_units(plain[:4], 240 - 8) == [[Range(file, 0, 10) for file in pair] for pair in (plain[:2], plain[2:4])]


def test_packed_files_count_four_times_in_a_unit(tmp_path: Path) -> None:
    for name, size in (("a.fasta", 8), ("b.fasta.gz", 4), ("c.fasta.gz", 1)):
        (tmp_path / name).write_bytes(bytes(size))
    plain, packed, last = (str(tmp_path / name) for name in ("a.fasta", "b.fasta.gz", "c.fasta.gz"))
    for files in ([plain, packed, last], [packed, plain, last]):
        assert [len(unit) for unit in plan_units(files, 8 * 24)] == [2, 1]
        assert [len(unit) for unit in plan_units(files, 8 * 28)] == [3]


@pytest.mark.parametrize("name", ["a.fasta", "a.fasta.gz"])
@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b"", None, "is empty: there is no sequence"),
        (b"\n\r\n \n", None, "is empty: there is no sequence"),
        (b"\xef\xbb\xbf", None, "is empty: there is no sequence"),
        (b"\nACGT\n>a\nACGT\n", 2, "text before the first header"),
        (b"ACGT\nACGT\n", 1, "text before the first header"),
        (b"\n  >a\nACGT\n", 2, "text before the first header"),
        (b">a\nAC\n>\nACGT\n", 3, "a header without an id"),
        (b">a\nAC\n> \t\r\nACGT\n", 3, "a header without an id"),
        (b">a\nAC\n>b\n>c\nACGT\n", 3, "the sequence b has no residues"),
        (b">a\nAC\n>b\n\n \r\n", 3, "the sequence b has no residues"),
        (b">a\nAC\n>b", 3, "the sequence b has no residues"),
        (b">a\nAC\nG\0T\n>b\nAC\n", 3, "is not text"),
        (b">a\nAC\nG\x1fT\n", 3, "is not text"),
        (b">a\nAC\nG\x0eT\n", 3, "is not text"),
        (b">a\nAC\nG\x08T\n", 3, "is not text"),
        (b">a\x01b\nAC\nG\x01T\n>c\nAC\n", 3, "is not text"),
        (b">a \x01b\x02\nAC\n", 1, "is not text"),
        (b">\x01\nAC\n", 1, "a header without an id"),
        (b">a\nAC\n>b caf\xe9\nACGT\n", 3, "the line is not valid UTF-8"),
        (b">a\nAC\n>b\nAC\xc2\xa0GT\n", 3, "the sequence b has a character that is not ASCII"),
        (b">a x\rACGT\nGG\n", 1, "a carriage return within a header"),
        (b">a x\r\nAC\n>b\rACGT\r\nGG\n", 3, "a carriage return within a header"),
        (b">a\rACGT\r>b\rGG\r", 1, "a carriage return within a header"),
        (b">a\nAC\nGGT>b\nACGT\n", 3, "a '>' within the sequence a"),
    ],
)
def test_broken_fasta(write: Write, name: str, content: bytes, line: int | None, what: str) -> None:
    file = write(content, name)
    where = file if line is None else f"{file}:{line}"
    assert fasta_mistake(file).startswith(f"{where}: {what}")


@pytest.mark.parametrize("block", [1, 10, blocks.BLOCK])
@pytest.mark.parametrize("word", ["one", "caf\u00e9"])
def test_headers_that_ncbi_has_joined(write: Write, monkeypatch: pytest.MonkeyPatch, word: str, block: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    monkeypatch.setattr(blocks, "OVERRUN", block)
    content = f">a {word} [x]\x01b two\x01c three\nAC\nGT\n>d\x01e\nGG\n".encode()
    file = write(content)
    for size in (3, 5, 8, len(content)):
        assert bodies(record for part in ranges(file, size) for record in read_fasta(part, "gene")) == [
            ("a", encode("gene", b"ACGT")),
            ("d", encode("gene", b"GG")),
        ]


def test_utf_16_and_unnamed_gzip_are_not_text(write: Write) -> None:
    assert ":1: is not text" in fasta_mistake(write(">a\nACGT\n".encode("utf-16")))
    assert "must be named .gz" in fasta_mistake(write(gzip.compress(b">a\nACGT\n")))


def test_broken_gzip(write: Write, tmp_path: Path) -> None:
    whole = gzip.compress(b">a\n" + bytes(random.Random(1).choices(b"ACGT", k=50_000)) + b"\n")
    for name, content in {
        "cut": whole[: len(whole) // 2],
        "one_byte": whole[:1],
        "no_end": whole[:-4],
        "flipped": whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:],
        "no_deflate": whole[:10] + b"\xff" * 9 + whole[19:],
        "plain": b">a\nACGT\n",
    }.items():
        path = tmp_path / f"{name}.fasta.gz"
        path.write_bytes(content)
        message = fasta_mistake(str(path))
        assert message.startswith(f"{path}: cannot be read (")
        assert ("it is no gzip file" if name == "plain" else "gzip -t") in message
        with pytest.raises(UserError, match="cannot be read"), blocks.reading(str(path)) as stream:
            stream.read()
    assert fasta_mistake(str(tmp_path / "absent.fasta")).startswith(f"{tmp_path}/absent.fasta: cannot be read")


@pytest.mark.parametrize("block", [20, blocks.BLOCK])
def test_mistakes_are_found_in_later_units(write: Write, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    monkeypatch.setattr(blocks, "OVERRUN", block)
    for bad, line in ((b">bad\n\n", 101), (b">long\n" + b"ACGT\n" * 30 + b"AC\0GT\n", 132)):
        file = write(b">a\nACGT\n" * 50 + bad + b">c\nACGT\n")
        found = set()
        for part in ranges(file, 64):
            try:
                list(read_fasta(part, "gene"))
            except UserError as error:
                found.add(error.where)
        assert found == {f"{file}:{line}"}


def test_the_first_unit_tells_that_there_is_no_record(write: Write) -> None:
    file = write(b"\n\r\n \n")
    for size in (1, 3, 100):
        first, *others = ranges(file, size)
        with pytest.raises(UserError, match="is empty: there is no sequence"):
            list(read_fasta(first, "gene"))
        assert not [record for part in others for record in read_fasta(part, "gene")]


PROTEINS = b">p1\nMKNPKKKSGGFRIVNMLKRG\n>p2\nVARVSPFGGLKRLPAGLLLGHGPIRMVLAILAFLRFTAIKPS\n"
GENES = b">g1\nAGTTGTTAGTCTACGTGGACCGACAAGG\n>g2\nACAGTTTCGAATCGGAAGCTTGCTTAACGTAGTTCTAACAGTTTTTTTAATT\n"


@pytest.mark.parametrize("name", ["a.fasta", "a.fasta.gz"])
def test_the_other_molecule_is_refused_with_the_setting_to_change(write: Write, name: str) -> None:
    message = fasta_mistake(write(PROTEINS, name), "gene")
    assert "the source says `kind: gene`, but the letters are amino acids" in message
    assert "write `kind: prot`" in message
    message = fasta_mistake(write(GENES, name), "prot")
    assert "the source says `kind: prot`, but the letters are bases" in message and "write `kind: gene`" in message
    assert f"{name}:1: " in message


def test_the_right_molecule_is_not_refused(write: Write) -> None:
    assert len(list(read_fasta(Range(write(PROTEINS)), "prot"))) == 2
    assert len(list(read_fasta(Range(write(GENES)), "gene"))) == 2
    mostly_n = write(b">a\n" + b"N" * 20_000 + b"\nACGT\n" + GENES)
    assert len(list(read_fasta(Range(mostly_n), "gene"))) == 3


def test_kind_is_judged_by_the_first_records(write: Write) -> None:
    """A few odd records after a good beginning pass, so that the judgement costs nothing on large files."""
    file = write(GENES * 300 + PROTEINS)
    assert len(list(read_fasta(Range(file), "gene"))) == 602


def test_kind_is_judged_over_several_blocks(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 40)
    told = fasta_mistake(write(b">a\nACGT\n" + PROTEINS * 3), "gene")
    assert ":1: the source says" in told and "the letters are amino acids" in told
    assert "the letters are bases" in fasta_mistake(write(GENES), "prot")


def test_a_sign_within_a_sequence_is_told_with_its_own_line(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b">a AC>T\nACGT\n>b\nGG\nAC>T\nGG\n"
    for block in (1, 4, 18, blocks.BLOCK):
        monkeypatch.setattr(blocks, "BLOCK", block)
        assert ":5: a '>' within the sequence b" in fasta_mistake(write(content))
