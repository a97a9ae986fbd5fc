"""The tokenize stage: the files of one source -> HDF5 shards and their index, the work shared by ranks."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lucavirus.alphabet import OTHER_BASE, UNK, encode
from lucavirus.annotations import window_labels
from lucavirus.config import Settings, Source
from lucavirus.distributed import Ranks
from lucavirus.errors import UserError
from lucavirus.files import replace_json
from lucavirus.records import Record, Unit, plan_units, read_unit
from lucavirus.shards import FORMAT, VERSION, Shard, ShardWriter, sequence_hash
from lucavirus.vocabularies import SourceLabels, read_vocabularies


def tokenize_source(settings: Settings, name: str, vocabularies: Path, out: Path, ranks: Ranks) -> dict[str, Any]:
    """Write all shards of a source and, last, their index; returns the index.

    Ranks take units of work in turn; each unit gives the same shards whoever does it. Raises UserError on bad input;
    no index is there then.
    """
    source = next(source for source in settings.sources if source.name == name)
    units = plan_units(source.files, settings.tokenize.unit_mb * 10**6)
    names = read_vocabularies(vocabularies)
    digests = {task: hashlib.sha256("\n".join(labels).encode()).hexdigest() for task, labels in names.items()}
    source_labels = SourceLabels(source, names, settings.gff3_types)
    out.mkdir(parents=True, exist_ok=True)
    if ranks.first:
        _index_path(out).unlink(missing_ok=True)
    ranks.barrier()
    for number in tqdm(ranks.mine(len(units)), desc=name, unit="unit", file=sys.stderr, disable=not ranks.first):
        unit = units[number]
        place = {"source": name, "input": unit.file, "input_bytes": (unit.start, unit.end)}
        writer = ShardWriter(out, number, {**place, "labels": json.dumps(digests)})
        counts = _tokenize_unit(unit, source, source_labels, writer)
        replace_json(_note_path(out, number), {"shards": writer.close(), "counts": counts})
    ranks.barrier()
    _refuse_duplicates(source, units, out, ranks)
    index = _finish(name, len(units), out) if ranks.first else {}
    ranks.barrier()
    return index


def _tokenize_unit(unit: Unit, source: Source, source_labels: SourceLabels, writer: ShardWriter) -> Counter[str]:
    counts: Counter[str] = Counter()
    for record in read_unit(unit, source.kind):
        tokens = encode(record.molecule, record.sequence)
        labels = source_labels.of(record, len(tokens))
        parent = sequence_hash(record.molecule, tokens)
        counts["input sequences"] += 1
        counts["residues"] += len(tokens)
        counts[f"{record.molecule} residues mapped to {'5 (N)' if record.molecule == 'gene' else '[UNK]'}"] += (
            tokens.count(OTHER_BASE if record.molecule == "gene" else UNK)
        )
        for label in labels.values():
            counts["labels"] += len(label)
        for n, (start, end) in enumerate(windows(len(tokens), source.window_size, source.window_overlap)):
            if end - start == len(tokens):
                writer.add(record.id, record.molecule, tokens, parent, labels)
            else:
                counts["windows"] += 1
                name = f"{record.id}_{n}_{start}_{end}"
                writer.add(name, record.molecule, tokens[start:end], parent, window_labels(labels, start, end))
    return counts


def windows(length: int, size: int | None, overlap: int) -> Iterator[tuple[int, int]]:
    """Windows [start, end) over a sequence: of `size` bases each, the last one shorter; the whole when it fits."""
    if size is None or length <= size:
        yield 0, length
        return
    start = 0
    while True:
        end = min(start + size, length)
        yield start, end
        if end == length:
            return
        start += size - overlap


def _refuse_duplicates(source: Source, units: list[Unit], out: Path, ranks: Ranks) -> None:
    """Raise UserError, with both places, when an id occurs twice in the source."""
    hashes = [np.empty(0, np.uint64)]
    for number in ranks.mine(len(units)):
        for entry in json.loads(_note_path(out, number).read_text())["shards"]:
            hashes.append(_id_hashes(Shard(out / entry["name"])))
    # Through int64, because not every back-end moves uint64.
    everyone = np.concatenate(ranks.gather(np.concatenate(hashes).view(np.int64)))
    values, counts = np.unique(everyone, return_counts=True)
    if not (counts > 1).any():
        return
    twice = set(values[counts > 1].view(np.uint64).tolist())
    seen: dict[str, Record] = {}
    for unit in units:
        for record in read_unit(unit, source.kind):
            first = seen.setdefault(record.id, record) if _hash(_first_name(record, source)) in twice else record
            if first is not record:
                raise UserError(f"the id {record.id} was used before, at {first.where}", where=record.where,
                                hint="ids must differ within a source: rename or remove one of the two")  # fmt: skip


def _first_name(record: Record, source: Source) -> str:
    """The id of a record's first row in the shards."""
    length = len(encode(record.molecule, record.sequence))
    start, end = next(windows(length, source.window_size, source.window_overlap))
    return record.id if end - start == length else f"{record.id}_0_{start}_{end}"


def _id_hashes(shard: Shard) -> NDArray[np.uint64]:
    return np.array([_hash(shard.name(row)) for row in range(len(shard))], np.uint64)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _finish(name: str, units: int, out: Path) -> dict[str, Any]:
    """Write the index and remove what does not belong to it (shards of an earlier, different set)."""
    notes = [json.loads(_note_path(out, number).read_text()) for number in range(units)]
    shards = [entry for note in notes for entry in note["shards"]]
    counts: Counter[str] = Counter()
    for note in notes:
        counts.update(note["counts"])
    digest = hashlib.blake2b(json.dumps([entry["checksum"] for entry in shards]).encode(), digest_size=16)
    index = {
        "format": FORMAT, "version": VERSION, "source": name, "fingerprint": digest.hexdigest(),
        "sequences": sum(entry["sequences"] for entry in shards), "tokens": sum(entry["tokens"] for entry in shards),
        "counts": dict(sorted(counts.items())), "shards": shards,
    }  # fmt: skip
    kept = {entry["name"] for entry in shards}
    for path in [*out.glob("*.h5"), *out.glob("*.tmp"), *out.glob("unit-*.json")]:
        if path.name not in kept:
            path.unlink()
    replace_json(_index_path(out), index)
    return index


def _index_path(out: Path) -> Path:
    return out / "index.json"


def _note_path(out: Path, number: int) -> Path:
    return out / f"unit-{number:05d}.json"
