"""The tokenize stage: the files of one source -> HDF5 shards and their index, the work shared by ranks."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lucavirus.alphabet import OTHER_BASE, UNK, encode
from lucavirus.annotations import Labels, window_labels
from lucavirus.config import Settings, Source
from lucavirus.distributed import Ranks
from lucavirus.errors import UserError
from lucavirus.files import replace_json
from lucavirus.records import Record, Unit, plan_units, read_unit
from lucavirus.shards import FORMAT, VERSION, ShardWriter, sequence_hash, text_hash
from lucavirus.vocabularies import SourceLabels, read_vocabularies


def tokenize_source(settings: Settings, name: str, vocabularies: Path, out: Path, ranks: Ranks) -> dict[str, Any]:
    """Write all shards of a source and, last, their index; returns the index.

    Ranks take units of work in turn; each unit gives the same shards whoever does it. Raises UserError on bad input;
    no index is there then.
    """
    source = chosen(settings.sources, name)
    names = read_vocabularies(vocabularies)
    digests = {task: hashlib.sha256("\n".join(labels).encode()).hexdigest() for task, labels in names.items()}
    source_labels = SourceLabels(source, names, settings.gff3_types)
    units = plan_units(source.files, settings.tokenize.unit_mb * 10**6)
    out.mkdir(parents=True, exist_ok=True)
    if ranks.first:
        _index_path(out).unlink(missing_ok=True)
        _clear(out)
    ranks.barrier()
    try:
        for number in tqdm(ranks.mine(len(units)), desc=name, unit="unit", file=sys.stderr, disable=not ranks.first):
            _tokenize_unit(number, units[number], source, source_labels, json.dumps(digests), out)
        ranks.barrier()
        _refuse_duplicates(source, units, out, ranks)
    except UserError:
        _clear(out, ranks.mine(len(units)))  # other ranks are ended by torchrun; the next start clears what they leave
        raise
    left_out: Counter[str] = sum(source_labels.left_out.values(), Counter())
    index = _finish(name, len(units), left_out, out) if ranks.first else {}
    ranks.barrier()
    return index


def chosen(sources: Iterable[Source], name: str) -> Source:
    """The source of a name. Raises UserError where there is none."""
    for source in sources:
        if source.name == name:
            return source
    raise UserError(
        f"there is no source {name}", hint=f"the sources are {', '.join(source.name for source in sources)}"
    )


def _tokenize_unit(
    number: int, unit: Unit, source: Source, source_labels: SourceLabels, digests: str, out: Path
) -> None:
    place = {"source": source.name, "input": unit.file, "input_bytes": (unit.start, unit.end), "labels": digests}
    writer = ShardWriter(out, number, place)
    counts: Counter[str] = Counter()
    hashes: list[int] = []
    for record in read_unit(unit, source.kind):
        tokens = encode(record.molecule, record.sequence)
        labels = source_labels.of(record, len(tokens))
        parent = sequence_hash(record.molecule, tokens)
        rows = _rows(record, len(tokens), source)
        hashes += map(text_hash, {record.id, *rows})
        _count(counts, record, tokens, labels, len(rows))
        for name, (start, end) in rows.items():
            cut = labels if end - start == len(tokens) else window_labels(labels, start, end)
            writer.add(name, record.molecule, tokens[start:end], parent, cut)
    np.save(_hashes_path(out, number), np.array(hashes, np.uint64))
    replace_json(_note_path(out, number), {"shards": writer.close(), "counts": counts})


def _count(counts: Counter[str], record: Record, tokens: bytes, labels: Labels, rows: int) -> None:
    other, name = (OTHER_BASE, "5 (N)") if record.molecule == "gene" else (UNK, "[UNK]")
    counts["input sequences"] += 1
    counts["residues"] += len(tokens)
    counts[f"{record.molecule} residues mapped to {name}"] += tokens.count(other)
    counts["labels"] += sum(map(len, labels.values()))
    if rows > 1:
        counts["windows"] += rows


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


def _rows(record: Record, length: int, source: Source) -> dict[str, tuple[int, int]]:
    """The rows of a record in the shards: id -> [start, end)."""
    cuts = list(windows(length, source.window_size, source.window_overlap))
    if len(cuts) == 1:
        return {record.id: cuts[0]}
    return {f"{record.id}_{n}_{start}_{end}": (start, end) for n, (start, end) in enumerate(cuts)}


def _refuse_duplicates(source: Source, units: list[Unit], out: Path, ranks: Ranks) -> None:
    """Raise UserError, with both places, when an id is taken twice in the source."""
    hashes = [np.load(_hashes_path(out, number), allow_pickle=False) for number in ranks.mine(len(units))]
    # Through int64, because not every back-end moves uint64.
    everyone = np.concatenate(ranks.gather(np.concatenate([np.empty(0, np.uint64), *hashes]).view(np.int64)))
    values, counts = np.unique(everyone, return_counts=True)
    if not (counts > 1).any():
        return
    twice = set(values[counts > 1].view(np.uint64).tolist())
    seen: dict[str, Record] = {}
    for unit in units:
        for record in read_unit(unit, source.kind):
            for name in {record.id: None, **_rows(record, len(encode(record.molecule, record.sequence)), source)}:
                first = seen.setdefault(name, record) if text_hash(name) in twice else record
                if first is not record:
                    raise UserError(
                        f"the id {name} was used before, at {first.where}",
                        where=record.where,
                        hint="ids (and those of windows) must differ within a source: rename or remove one of the two",
                    )


def _finish(name: str, units: int, left_out: Counter[str], out: Path) -> dict[str, Any]:
    """Write the index and remove what does not belong to it (shards of an earlier, different set)."""
    notes = [json.loads(_note_path(out, number).read_text()) for number in range(units)]
    shards = [entry for note in notes for entry in note["shards"]]
    counts = Counter({f"GFF3 features left out: {kind}": count for kind, count in left_out.items()})
    for note in notes:
        counts.update(note["counts"])
    digest = hashlib.blake2b(json.dumps([entry["checksum"] for entry in shards]).encode(), digest_size=16)
    index = {
        "format": FORMAT, "version": VERSION, "source": name, "fingerprint": digest.hexdigest(),
        "sequences": sum(entry["sequences"] for entry in shards), "tokens": sum(entry["tokens"] for entry in shards),
        "counts": dict(sorted(counts.items())), "shards": shards,
    }  # fmt: skip
    for number in range(units):
        _note_path(out, number).unlink()
        _hashes_path(out, number).unlink()
    replace_json(_index_path(out), index)
    return index


def _clear(out: Path, units: Iterable[int] | None = None) -> None:
    """Remove what was written for some units; without them for all, those of an earlier set too."""
    numbers = None if units is None else set(units)
    for path in out.iterdir():
        found = re.match(r"(?:unit-)?(\d{5})[-.]", path.name)
        if found and (numbers is None or int(found[1]) in numbers):
            path.unlink(missing_ok=True)


def _index_path(out: Path) -> Path:
    return out / "index.json"


def _hashes_path(out: Path, number: int) -> Path:
    return out / f"unit-{number:05d}.npy"


def _note_path(out: Path, number: int) -> Path:
    return out / f"unit-{number:05d}.json"
