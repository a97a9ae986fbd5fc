"""The tokenize stage on hand-made sources: rows, windows with their labels, ranks, duplicates."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucavirus import blocks
from lucavirus.alphabet import encode
from lucavirus.config import Run, Settings
from lucavirus.config_data import Tokenize
from lucavirus.distributed import Ranks
from lucavirus.errors import UserError
from lucavirus.rows import cut_windows
from lucavirus.shards import Shard, read_index
from lucavirus.tasks import SUPERVISED
from lucavirus.tokenization import _clear, tokenize_source
from lucavirus.vocabularies import build_vocabularies

ALONE = Ranks(0, 1, torch.device("cpu"))


def _settings(**source: Any) -> Settings:
    return Settings(project="p", sources=({"name": "s", **source},), runs={"full": Run()})  # type: ignore[arg-type]


def _tokenize(tmp_path: Path, settings: Settings, ranks: Ranks = ALONE) -> list[Shard]:
    build_vocabularies(settings, tmp_path / "vocabularies")
    tokenize_source(settings, "s", tmp_path / "vocabularies", tmp_path / "shards", ranks)
    return [Shard(tmp_path / "shards" / entry["name"]) for entry in read_index(tmp_path / "shards")["shards"]]


def windows(lengths: list[int], size: int | None, overlap: int) -> list[tuple[int, int, int, int, bool]]:
    cuts = cut_windows(np.array(lengths), size, overlap)
    columns = (cuts.sequence, cuts.number, cuts.start, cuts.end, cuts.cut)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_windows() -> None:
    assert windows([10], None, 0) == windows([10], 10, 0) == [(0, 0, 0, 10, False)]
    assert windows([10], 4, 0) == [(0, 0, 0, 4, True), (0, 1, 4, 8, True), (0, 2, 8, 10, True)]
    assert windows([10], 4, 1) == [(0, 0, 0, 4, True), (0, 1, 3, 7, True), (0, 2, 6, 10, True)]
    assert windows([8], 4, 0) == [(0, 0, 0, 4, True), (0, 1, 4, 8, True)]
    assert windows([2, 5, 4], 4, 1) == [
        (0, 0, 0, 2, False),
        (1, 0, 0, 4, True),
        (1, 1, 3, 5, True),
        (2, 0, 0, 4, False),
    ]
    assert windows([2, 5], None, 0) == [(0, 0, 0, 2, False), (1, 0, 0, 5, False)]


def test_labels_follow_their_window(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    settings = _settings(
        files=[write("a.fa", ">long\nACGTA\nCGTNN\n>short\nacgu\n")], kind="gene", window_size=4,
        annotations=[
            # CDS 3..6 in GFF3 is 2..5 from 0: the last two of window 0 and the first two of window 1.
            write("a.gff3", "long\t.\tCDS\t3\t6\t.\t+\t0\t.\nlong\t.\ttRNA\t10\t10\t.\t+\t.\t.\n"
                            "long\t.\texon\t1\t2\t.\t+\t.\t.\nshort\t.\texon\t1\t2\t.\t+\t.\t.\n"),
            write("a.tsv", "seq_id\ttask\tlabel\nlong\tgene_taxonomy\tB\nshort\tgene_taxonomy\tA\n"),
        ],
    )  # fmt: skip
    (shard,) = _tokenize(tmp_path, settings)
    assert [shard.name(n) for n in range(4)] == ["long_0_0_4", "long_1_4_8", "long_2_8_10", "short"]
    bodies = [encode("gene", residues) for residues in (b"ACGT", b"ACGT", b"NN", b"ACGT")]
    assert [shard.sequence(n).tobytes() for n in range(4)] == bodies
    # Vocabulary of gene_type, sorted: CDS 0, tRNA 1.
    assert [shard.labels(n, "gene_type").tolist() for n in range(4)] == [[[2, 3, 0]], [[0, 1, 0]], [[1, 1, 1]], []]
    assert [shard.labels(n, "gene_taxonomy").tolist() for n in range(4)] == [[[1]], [[1]], [[1]], [[0]]]
    parents, contents = shard.arrays["parent_hash"], shard.arrays["content_hash"]
    assert parents[0] == parents[1] == parents[2] != parents[3]
    assert contents[0] == contents[1] == contents[3] == parents[3]
    assert read_index(tmp_path / "shards")["counts"] == {
        "GFF3 features left out: exon": 2,
        "gene residues mapped to 5 (N)": 2, "input sequences": 2, "labels": 4, "residues": 14, "windows": 3,
    }  # fmt: skip


def test_a_shard_tells_what_it_was_made_of(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    large, packed = write("a.fa", "".join(f">{name}\n{'MKVLAWG1' * 75_000}\n" for name in "ab")), tmp_path / "b.fa.gz"
    packed.write_bytes(gzip.compress(b">c\nMKV\n>d\nMK\n>e\nM\n"))
    settings = _settings(files=[large, str(packed)], kind="prot").model_copy(update={"tokenize": Tokenize(unit_mb=1)})
    told = [shard.attributes for shard in _tokenize(tmp_path, settings)]
    assert [(a["source"], a["input"], a["input_bytes"].tolist(), a["sequences"], a["tokens"]) for a in told] == [
        ("s", large, [0, 600_004], 1, 600_000),
        ("s", large, [600_004, 1_200_008], 1, 600_000),
        ("s", str(packed), [0, 0], 3, 6),
    ]
    index = read_index(tmp_path / "shards")
    assert (index["source"], index["sequences"], index["tokens"]) == ("s", 5, 1_200_006)
    assert index["counts"] == {
        "input sequences": 5, "labels": 0, "prot residues mapped to [UNK]": 150_000, "residues": 1_200_006,
    }  # fmt: skip


def test_small_files_share_a_shard_that_holds_what_one_file_would(
    tmp_path: Path, write: Callable[[str, str], str]
) -> None:
    texts = [f">{name}\n{'ACGT' * size}\n" for name, size in (("x", 3), ("y", 1), ("z", 2))]
    files = [write(f"{number}.fa", text) for number, text in enumerate(texts)]
    (of_one,) = _tokenize(tmp_path, _settings(files=[write("all.fa", "".join(texts))], kind="gene", window_size=8))
    one = {name: array.copy() for name, array in of_one.arrays.items()}
    (of_three,) = _tokenize(tmp_path, _settings(files=files, kind="gene", window_size=8))
    assert [of_three.name(row) for row in range(4)] == ["x_0_0_8", "x_1_8_12", "y", "z"]
    assert [name for name, array in of_three.arrays.items() if not np.array_equal(array, one[name])] == []
    assert of_three.attributes["input"] == f"3 files, {files[0]} to {files[2]}"
    assert of_three.attributes["input_bytes"].tolist() == [0, 0]


def test_openvirus_csv(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    names = {task: write(f"{task}.txt", "A\nB\nC\n") for task in SUPERVISED}
    text = (
        "obj_id,obj_type,obj_seq,obj_label\n"
        "g,gene,ACGTT,\"{'span_level': {'gene_type': [[0, 1, 2], [1, 4, 0]]}, 'seq_level': {'gene_taxonomy': 1}}\"\n"
        'p,prot,MK1,"{""span_level"": {""prot_site"": []}, ""seq_level"": {""prot_keyword"": [2, 0]}}"\n'
    )
    settings = Settings(
        project="p", sources=({"name": "s", "files": [write("a.csv", text)]},), vocabularies=names, runs={"full": Run()}
    )  # type: ignore[arg-type]
    (shard,) = _tokenize(tmp_path, settings)
    assert [shard.name(n) for n in range(2)] == ["g", "p"] and shard.molecule.tolist() == [0, 1]
    assert shard.labels(0, "gene_type").tolist() == [[0, 1, 2], [1, 4, 0]]
    assert shard.labels(0, "gene_taxonomy").tolist() == [[1]]
    assert shard.labels(1, "prot_keyword").tolist() == [[2], [0]] and len(shard.labels(1, "prot_site")) == 0
    assert read_index(tmp_path / "shards")["counts"]["prot residues mapped to [UNK]"] == 1


def test_duplicate_ids_are_told_with_both_places(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    files = [write("a.fa", ">x\nACGT\n>y\nACGTACGT\n"), write("b.fa", ">z\nA\n>y again\nACGTACGTTT\n")]
    with pytest.raises(UserError) as caught:
        _tokenize(tmp_path, _settings(files=files, kind="gene", window_size=5))
    assert str(caught.value).startswith(f"{files[1]}:3: the id y was used before, at {files[0]}:3")
    assert not (tmp_path / "shards/index.json").exists()


def test_bad_input_leaves_no_index_and_no_half_shard(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    good, bad = write("a.fa", ">x\nACGT\n"), write("b.fa", ">y\nACGT\n>z\n>w\nA\n")
    _tokenize(tmp_path, _settings(files=[good], kind="gene"))
    with pytest.raises(UserError, match="b.fa:3: the sequence z has no residues"):
        _tokenize(tmp_path, _settings(files=[good, bad], kind="gene"))
    assert not (tmp_path / "shards/index.json").exists()
    assert all(Shard(path).verify() is None for path in (tmp_path / "shards").glob("*.h5"))


def test_a_span_beyond_the_sequence_is_told_with_its_line(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    fasta = write("a.fa", ">x\nACGT\n")
    gff3 = write("a.gff3", "##gff-version 3\nx\t.\tCDS\t1\t5\t.\t+\t0\t.\n")
    with pytest.raises(UserError, match=r"a.gff3:2: .*not within the sequence of 4"):
        _tokenize(tmp_path, _settings(files=[fasta], kind="gene", annotations=[gff3]))


def test_a_second_set_replaces_the_first(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    two = [write("a.fa", ">x\nACGT\n"), write("b.fa", ">y\nACGTA\n")]
    _tokenize(tmp_path, _settings(files=two, kind="gene"))
    for killed in ("00003-000.h5.7.tmp", "unit-00003.hashes", ".unit-00003.json.7.tmp"):
        write(f"shards/{killed}", "half a fi")
    first = read_index(tmp_path / "shards")["fingerprint"]
    _tokenize(tmp_path, _settings(files=two[:1], kind="gene"))
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["00000-000.h5", "index.json"]
    assert read_index(tmp_path / "shards")["fingerprint"] != first
    assert json.loads((tmp_path / "shards/index.json").read_text())["sequences"] == 1


def test_a_rank_makes_and_removes_its_own_units_only(
    tmp_path: Path, write: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ranks, "least", lambda _, number: number)  # the second rank by itself
    monkeypatch.setattr(blocks, "_SHARED", 10**9)  # each file is a unit
    out, settings = (
        tmp_path / "shards",
        _settings(files=[write(f"{n}.fa", f">{n}\nACGT\n") for n in "abcd"], kind="gene"),
    )

    def tokenize() -> list[str]:
        with contextlib.suppress(UserError):
            tokenize_source(settings, "s", tmp_path / "vocabularies", out, Ranks(1, 2, torch.device("cpu")))
        return sorted(path.name for path in out.iterdir())

    build_vocabularies(settings, tmp_path / "vocabularies")
    assert tokenize() == [
        "00001-000.h5", "00003-000.h5", "unit-00001.hashes", "unit-00001.json", "unit-00003.hashes", "unit-00003.json",
    ]  # fmt: skip
    for name in ("00002-000.h5.7.tmp", "unit-00000.hashes"):
        write(f"shards/{name}", "of the first rank")
    write("d.fa", ">d\n")
    assert tokenize() == ["00002-000.h5.7.tmp", "unit-00000.hashes"]


def test_ids_of_records_and_of_windows_are_compared(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    cut_and_whole = write("a.fa", ">w\nA\n>x\nACGT\n>x\nACGTACGTACGT\n>y\nA\n")
    with pytest.raises(UserError, match=r"a.fa:5: the id x was used before, at .*a.fa:3"):
        _tokenize(tmp_path, _settings(files=[cut_and_whole], kind="gene", window_size=5))
    like_a_window = write("b.fa", ">x\nACGTACGT\n>x_0_0_5\nACG\n")
    with pytest.raises(UserError, match=r"b.fa:3: the id x_0_0_5 was used before, at .*b.fa:1"):
        _tokenize(tmp_path, _settings(files=[like_a_window], kind="gene", window_size=5))
    assert not list((tmp_path / "shards").iterdir())


def test_shards_do_not_depend_on_blocks(
    tmp_path: Path, write: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [3, 400, 2, 900, 1, 77, 78, 79, 80, 81] * 3
    text = "".join(f">s{n} x\n" + "\n".join(["ACGTN" * 8] * (size // 40)) + "\nAC\n" for n, size in enumerate(lengths))
    labels = "seq_id\ttask\tstart\tend\tlabel\n" + "".join(f"s{n}\tgene_type\t0\t1\tCDS\n" for n in range(0, 30, 3))
    source = {
        "files": [write("a.fa", text)],
        "kind": "gene",
        "annotations": [write("l.tsv", labels)],
        "window_size": 64,
    }
    made = []
    for block, rows in ((1, 2), (50, 3), (1000, 4096)):
        monkeypatch.setattr(blocks, "BLOCK", block)
        monkeypatch.setattr("lucavirus.rows.AT_ONCE", rows)
        _tokenize(tmp_path, _settings(**source))
        made.append({path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()})
    assert made[0] == made[1] == made[2]
    shard = Shard(tmp_path / "shards/00000-000.h5")
    assert [shard.name(n) for n in range(3)] == ["s0", "s1_0_0_64", "s1_1_64_128"]
    assert sum(len(shard.labels(n, "gene_type")) for n in range(len(shard))) == 10


def test_duplicates_are_found_across_units_and_batches(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    proteins = [f">p{n}\n{'MKVLAWGQ' * 30}\n" for n in range(9000)]
    file = write("p.fa", "".join([*proteins, ">p123 once more\nMKV\n"]))
    settings = _settings(files=[file], kind="prot").model_copy(update={"tokenize": Tokenize(unit_mb=1)})
    with pytest.raises(UserError, match=rf"p.fa:{2 * 9000 + 1}: the id p123 was used before, at .*p.fa:247\n"):
        _tokenize(tmp_path, settings)


def test_what_units_left_is_cleared_however_many_there_are(tmp_path: Path) -> None:
    names = ["00007-000.h5", "unit-00007.hashes", "100000-000.h5", ".100000-000.h5.1.tmp", "unit-100000.json"]
    for name in (*names, "index.json"):
        (tmp_path / name).touch()
    _clear(tmp_path, [100000])
    assert {path.name for path in tmp_path.iterdir()} == {"00007-000.h5", "unit-00007.hashes", "index.json"}
    _clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
