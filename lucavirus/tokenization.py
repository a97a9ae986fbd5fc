"""The tokenize stage: the files of one source -> HDF5 shards and their index, the work shared by ranks."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lucavirus import memory
from lucavirus.alphabet import OTHER_BASE, UNK
from lucavirus.background import Background
from lucavirus.blocks import Unit, line_of, mistake, plan_units
from lucavirus.config import Settings
from lucavirus.config_data import Source
from lucavirus.config_load import chosen_source
from lucavirus.counters import U64
from lucavirus.distributed import Ranks
from lucavirus.errors import UserError
from lucavirus.files import replace_json
from lucavirus.hashes import text_hashes
from lucavirus.record_batches import RecordBatch
from lucavirus.records import read_unit
from lucavirus.rows import Windows, cut_sequences, cut_windows, make_rows, window_ids
from lucavirus.sequence_labels import Labels
from lucavirus.shards import FORMAT, VERSION, ShardWriter
from lucavirus.tasks import MOLECULES
from lucavirus.vocabularies import SourceLabels, read_vocabularies


def tokenize_source(settings: Settings, name: str, vocabularies: Path, out: Path, ranks: Ranks) -> dict[str, Any]:
    """Write all shards of a source and, last, their index; returns the index.

    Ranks take units of work in turn; each unit gives the same shards whoever does it. Raises UserError on bad input;
    no index is there then.
    """
    memory.keep_blocks()
    source = chosen_source(settings, name)
    names = read_vocabularies(vocabularies)
    source_labels = SourceLabels(source, names, settings.gff3_types)
    units = plan_units(source.files, settings.tokenize.unit_mb * 10**6)
    out.mkdir(parents=True, exist_ok=True)
    if ranks.first:
        _index_path(out).unlink(missing_ok=True)
        _clear(out)
    ranks.barrier()
    try:
        notes = {}
        mine = tqdm(ranks.mine(len(units)), desc=name, unit="unit", file=sys.stderr, disable=not ranks.first)
        with Background() as background:
            for number in mine:
                notes[number] = _tokenize_unit(number, units[number], source, source_labels, out, background)
        for number, note in notes.items():
            replace_json(_note_path(out, number), note)
        ranks.barrier()
        # The first rank looks; where it finds something all do, so that all end with the same message.
        if ranks.any(ranks.first and len(_taken_twice(len(units), out)) > 0):
            twice = _taken_twice(len(units), out)
            ranks.barrier()  # who refuses removes its files, which the others have read now
            _refuse_duplicates(source, units, twice)
    except UserError:
        _clear(out, ranks.mine(len(units)))  # other ranks are ended by torchrun; the next start clears what they leave
        raise
    left_out: Counter[str] = sum(source_labels.left_out.values(), Counter())
    index = _finish(name, len(units), left_out, out) if ranks.first else {}
    ranks.barrier()
    return index


def _tokenize_unit(
    number: int, unit: Unit, source: Source, source_labels: SourceLabels, out: Path, background: Background
) -> dict[str, Any]:
    """Write the shards of a unit; returns their index entries and what was counted."""
    first, last = unit[0], unit[-1]
    place = {
        "source": source.name, "labels": json.dumps(source_labels.digests),
        "input": first.file if first is last else f"{len(unit)} files, {first.file} to {last.file}",
        "input_bytes": (first.start, first.end) if first is last else (0, 0),
    }  # fmt: skip
    writer = ShardWriter(out, number, place, background)
    counts: Counter[str] = Counter()
    hashes = [np.empty(0, np.uint64)]
    for batch in read_unit(unit, source.kind):
        labels = source_labels.of_batch(batch)
        windows = _windows(batch, source)
        _count(counts, batch, windows, labels)
        hashes.append(text_hashes([batch.ids[n] for n in cut_sequences(windows).tolist()]))
        for rows in make_rows(batch, windows, labels):
            hashes.append(rows.id_hash)
            writer.add(rows)
    _hashes_path(out, number).write_bytes(np.concatenate(hashes).data)
    return {"shards": writer.close(), "counts": counts}


def _windows(batch: RecordBatch, source: Source) -> Windows:
    return cut_windows(np.diff(batch.bounds), source.window_size, source.window_overlap)


def _count(counts: Counter[str], batch: RecordBatch, windows: Windows, labels: Mapping[int, Labels]) -> None:
    counts["input sequences"] += len(batch)
    counts["residues"] += len(batch.tokens)
    # Neither token stands in a sequence of the other molecule.
    for molecule, other, name in (("gene", OTHER_BASE, "5 (N)"), ("prot", UNK, "[UNK]")):
        if (batch.molecules == MOLECULES.index(molecule)).any():
            counts[f"{molecule} residues mapped to {name}"] += batch.count(other)
    counts["labels"] += sum(len(rows) for found in labels.values() for rows in found.values())
    if cut := int(windows.cut.sum()):
        counts["windows"] += cut


def _taken_twice(units: int, out: Path) -> U64:
    """The hashes of ids that several rows or records have."""
    hashes = [np.fromfile(_hashes_path(out, number), np.uint64) for number in range(units)]
    everyone = np.concatenate([np.empty(0, np.uint64), *hashes])
    del hashes
    everyone.sort()
    return np.unique(everyone[1:][everyone[1:] == everyone[:-1]])


def _refuse_duplicates(source: Source, units: Sequence[Unit], twice: U64) -> None:
    """Raise UserError, with both places, when an id whose hash is among `twice` is taken twice in the source."""
    seen: dict[bytes, tuple[str, int]] = {}
    for name, place in _taken_ids(source, units, twice):
        first = seen.setdefault(name, place)
        if first != place:
            hint = "ids (and those of windows) must differ within a source: rename or remove one of the two"
            raise mistake(*place, f"the id {name.decode()} was used before, at {line_of(*first)}", hint)


def _taken_ids(source: Source, units: Sequence[Unit], wanted: U64) -> Iterator[tuple[bytes, tuple[str, int]]]:
    """The ids whose hash is `wanted` (ascending), in order, of records and windows, and where their record begins."""
    for unit in units:
        for batch in read_unit(unit, source.kind):
            windows = _windows(batch, source)
            whole = cut_sequences(windows)
            ids = [*(batch.ids[n] for n in whole.tolist()), *window_ids(batch, windows, slice(None))]
            owners = np.concatenate([whole, windows.sequence])
            hashes = text_hashes(ids)
            found = np.flatnonzero(wanted.take(np.searchsorted(wanted, hashes), mode="clip") == hashes)
            for place in found[np.argsort(owners[found], kind="stable")].tolist():
                yield ids[place], (batch.file, batch.offsets[owners[place]])


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
        found = re.match(r"\.?(?:unit-)?(\d{5,})[-.]", path.name)
        if found and (numbers is None or int(found[1]) in numbers):
            path.unlink(missing_ok=True)


def _index_path(out: Path) -> Path:
    return out / "index.json"


def _hashes_path(out: Path, number: int) -> Path:
    return out / f"unit-{number:05d}.hashes"


def _note_path(out: Path, number: int) -> Path:
    return out / f"unit-{number:05d}.json"
