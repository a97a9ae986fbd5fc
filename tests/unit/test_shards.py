"""Shards reread equal what was written, and damage is told."""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lucavirus import shards
from lucavirus.alphabet import encode
from lucavirus.background import Background
from lucavirus.errors import UserError
from lucavirus.files import replace_json
from lucavirus.hashes import sequence_hashes
from lucavirus.record_batches import Record, to_batch
from lucavirus.rows import Rows, cut_windows, make_rows
from lucavirus.sequence_labels import Labels
from lucavirus.shards import FORMAT, VERSION, Shard, ShardWriter, map_arrays, read_index, write_arrays
from lucavirus.tasks import Molecule

ROWS: list[tuple[str, Molecule, bytes, Labels]] = [
    ("g1", "gene", b"ACGTN", {"gene_type": [(0, 1, 2), (1, 3, 0)], "gene_taxonomy": [(4,)]}),
    ("prot|ä", "prot", b"MKV", {"prot_keyword": [(3,), (0,)], "prot_site": [(2, 2, 1)]}),
    ("g2", "gene", b"TTTTTTT", {}),
]


def _rows() -> Rows:
    batch = to_batch([Record(name, molecule, encode(molecule, text), "f", 0) for name, molecule, text, _ in ROWS])
    labels = {number: labels for number, (*_, labels) in enumerate(ROWS) if labels}
    (rows,) = make_rows(batch, cut_windows(np.diff(batch.bounds), None, 0), labels)
    return rows


def _write(folder: Path, part_tokens: int = 100, at_once: int = 3) -> list[str]:
    place = {"source": "s", "input": "a.fa", "input_bytes": (0, 9)}
    with Background() as background:
        writer = ShardWriter(folder, 7, place, background, part_tokens)
        for first in range(0, len(ROWS), at_once):
            writer.add(_rows()[first : first + at_once])
        return [entry["name"] for entry in writer.close()]


def _hash(molecule: Molecule, tokens: bytes) -> int:
    kind = np.array([("gene", "prot").index(molecule)], np.uint8)
    return int(sequence_hashes(tokens, np.array([0]), np.array([len(tokens)]), kind)[0])


def test_rows_come_back(tmp_path: Path) -> None:
    assert _write(tmp_path) == ["00007-000.h5"]
    shard = Shard(tmp_path / "00007-000.h5")
    assert len(shard) == 3 and shard.offsets.tolist() == [0, 5, 8, 15]
    kinds = {"offsets": "int64", "values": "int32", "hash": "uint64"}
    assert all(array.dtype == kinds.get(re.split("[_/]", name)[-1], "uint8") for name, array in shard.arrays.items())
    for row, (name, molecule, residues, _) in enumerate(ROWS):
        assert shard.name(row) == name
        assert shard.sequence(row).tobytes() == encode(molecule, residues)
        assert shard.molecule[row] == ("gene", "prot").index(molecule)
        assert shard.arrays["content_hash"][row] == _hash(molecule, encode(molecule, residues))
    assert shard.labels(0, "gene_type").tolist() == [[0, 1, 2], [1, 3, 0]]
    assert shard.labels(0, "gene_taxonomy").tolist() == [[4]]
    assert shard.labels(1, "prot_keyword").tolist() == [[3], [0]]
    assert shard.labels(1, "prot_site").tolist() == [[2, 2, 1]]
    assert [len(shard.labels(2, task)) for task in ("gene_type", "gene_taxonomy", "prot_keyword")] == [0, 0, 0]
    assert (shard.attributes["sequences"], shard.attributes["tokens"]) == (3, 15)
    shard.verify()


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_shard_is_verified_in_parts(tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, it is accepted; with its last token changed, which is of the last part, refused."""
    monkeypatch.setattr(shards, "AT_ONCE", at_once)
    path = tmp_path / _write(tmp_path)[0]
    Shard(path).verify()
    content, tokens = bytearray(path.read_bytes()), Shard(path).tokens.tobytes()
    content[content.index(tokens) + len(tokens) - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not match its checksum"):
        Shard(path).verify()


def test_a_large_unit_goes_on_in_the_next_shard(tmp_path: Path) -> None:
    assert _write(tmp_path, part_tokens=8) == ["00007-000.h5", "00007-001.h5"]
    assert [len(Shard(tmp_path / f"00007-00{n}.h5")) for n in (0, 1)] == [2, 1]


def test_every_part_is_filled(tmp_path: Path) -> None:
    with Background() as background:
        writer = ShardWriter(tmp_path, 7, {}, background, 10)
        for _ in range(2):
            writer.add(_rows())
        entries = writer.close()
    assert [(entry["sequences"], entry["tokens"]) for entry in entries] == [(2, 8), (1, 7)] * 2
    assert [Shard(tmp_path / entry["name"]).attributes["tokens"] for entry in entries] == [8, 7] * 2


def test_no_part_has_too_many_rows(tmp_path: Path) -> None:
    """Labels of millions of short peptides would take gigabytes before there are tokens enough for a shard."""
    with Background() as background:
        writer = ShardWriter(tmp_path, 7, {}, background, part_rows=2)
        for _ in range(2):
            writer.add(_rows())
        entries = writer.close()
    assert [(entry["sequences"], entry["tokens"]) for entry in entries] == [(2, 8), (2, 12), (2, 10)]
    assert [len(Shard(tmp_path / entry["name"])) for entry in entries] == [2, 2, 2]


def test_parts_do_not_depend_on_how_many_rows_come_at_once(tmp_path: Path) -> None:
    written = []
    for at_once in (1, 2, 3):
        folder = tmp_path / str(at_once)
        folder.mkdir()
        written.append({name: (folder / name).read_bytes() for name in _write(folder, 12, at_once)})
    assert written[0] == written[1] == written[2] and len(written[0]) == 2


def test_a_row_longer_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    names = _write(tmp_path, part_tokens=4)
    assert [Shard(tmp_path / name).offsets.tolist() for name in names] == [[0, 5], [0, 3], [0, 7]]
    assert Shard(tmp_path / names[1]).labels(0, "prot_keyword").tolist() == [[3], [0]]


def test_a_failure_to_write_is_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _write(tmp_path / "absent")


def test_one_shard_at_a_time_is_written_behind(tmp_path: Path) -> None:
    done = list[int]()
    with pytest.raises(FileNotFoundError), Background() as background:
        background.run(lambda: (time.sleep(0.05), done.append(1)))  # type: ignore[arg-type]
        background.run(write_arrays, tmp_path / "absent/a", {}, {})
        assert done == [1]
        background.run(done.append, 2)
    assert done == [1]


def test_bytes_do_not_depend_on_time(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    _write(tmp_path / "a")
    time.sleep(1.1)  # HDF5 counts seconds
    _write(tmp_path / "b")
    assert (tmp_path / "a/00007-000.h5").read_bytes() == (tmp_path / "b/00007-000.h5").read_bytes()


def test_nothing_but_whole_shards_is_left(tmp_path: Path) -> None:
    _write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["00007-000.h5"]


@pytest.mark.parametrize("dataset", ["tokens", "offsets", "ids", "content_hash", "row_hash", "labels/gene_type/values"])
def test_a_flipped_byte_is_found(tmp_path: Path, dataset: str) -> None:
    path = tmp_path / _write(tmp_path)[0]
    content = bytearray(path.read_bytes())
    place = content.index(Shard(path).arrays[dataset].tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="00007-000.h5: does not match its checksum"):
        Shard(path).verify()


def test_a_truncated_or_foreign_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / _write(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        Shard(path)
    path.write_text("hello")
    with pytest.raises(UserError, match="cannot be read"):
        Shard(path)


def test_a_shard_holds_one_file_open(tmp_path: Path) -> None:
    path = tmp_path / _write(tmp_path)[0]
    shard = Shard(path)
    assert len(shard.arrays) > 10
    assert [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()].count(str(path.resolve())) == 1


def test_nothing_is_begun_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 crashes at times when it closes a file that it could not write."""
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: SimpleNamespace(free=99 + 2**16))
    write_arrays(tmp_path / "a", {"x": np.zeros(99, np.uint8)}, {})
    with pytest.raises(OSError, match="No space left on device: .*/b"):
        write_arrays(tmp_path / "b", {"x": np.zeros(50, np.uint8), "y": [np.zeros(25, np.uint8)] * 2}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_one_that_cannot_be_read_is_not_to_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / _write(tmp_path)[0]

    def refuse(*given: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("lucavirus.shards.np.memmap", refuse)
    with pytest.raises(UserError, match="cannot be read .*Too many open files.*\n.*: it may well be whole"):
        Shard(path)
    monkeypatch.undo()
    path.unlink()
    with pytest.raises(UserError, match=f"cannot be read .*\n.*: remove {tmp_path} and run the workflow again"):
        Shard(path)


def test_files_of_another_kind_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / _write(tmp_path)[0]
    for name, version in (("lucavirus-dataset", VERSION), (FORMAT, VERSION + 1)):
        with pytest.raises(UserError, match=f"00007-000.h5: is not a {name} file of version {version}"):
            map_arrays(path, name, version)
    monkeypatch.setattr("lucavirus.alphabet.TOKENS", ("A", "C"))
    with pytest.raises(UserError, match="00007-000.h5: was made with another alphabet"):
        Shard(path)


def test_an_index_is_read_or_named(tmp_path: Path) -> None:
    told = f"^{re.escape(str(tmp_path))}/index.json: cannot be read"
    with pytest.raises(UserError, match=told):
        read_index(tmp_path)
    replace_json(tmp_path / "index.json", {"shards": []})
    assert read_index(tmp_path) == {"shards": []}
    (tmp_path / "index.json").write_text('{"shards"')
    with pytest.raises(UserError, match=told):
        read_index(tmp_path)


def test_the_same_residues_are_another_sequence_in_the_other_molecule() -> None:
    assert _hash("gene", b"\x05\x06") != _hash("prot", b"\x05\x06")
    assert _hash("gene", encode("gene", b"ACGU")) == _hash("gene", encode("gene", b"acgt"))
