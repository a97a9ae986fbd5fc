"""Labels of sequences: GFF3 and TSV annotation files, and the obj_label of OpenVirus.

Spans are (start, end): positions of the sequence's body from 0, both ends included.
"""

from __future__ import annotations

import ast
import csv
import difflib
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from lucavirus.blocks import BOM, reading
from lucavirus.errors import UserError
from lucavirus.tasks import SUPERVISED, TASKS, Molecule, Task

# Labels of one sequence: task -> (start, end, class id) of each span, or (class id,) of each class of the sequence.
Labels = dict[str, list[tuple[int, ...]]]

# GFF3 feature types (INSDC and Sequence Ontology names) of each class of gene_type.
GENE_TYPES: dict[str, str] = {
    "CDS": "CDS",
    "intron": "intron group_I_intron group_II_intron spliceosomal_intron autocatalytically_spliced_intron",
    "misc_RNA": "misc_RNA",
    "ncRNA": """ncRNA lncRNA lnc_RNA snRNA snoRNA scaRNA scRNA miRNA pre_miRNA siRNA rasiRNA piRNA sgRNA guide_RNA
        antisense_RNA antisense_lncRNA circRNA ribozyme hammerhead_ribozyme RNase_P_RNA RNase_MRP_RNA SRP_RNA
        telomerase_RNA vault_RNA Y_RNA""",
    "rRNA": "rRNA small_subunit_rRNA large_subunit_rRNA rRNA_5S rRNA_5_8S rRNA_16S rRNA_18S rRNA_23S rRNA_28S",
    "regulatory": """regulatory regulatory_region promoter enhancer silencer insulator operator terminator attenuator
        riboswitch TATA_box CAAT_signal GC_signal GC_rich_promoter_region minus_10_signal minus_35_signal uORF CRM
        polyA_signal_sequence response_element TF_binding_site Shine_Dalgarno_sequence ribosome_binding_site
        ribosome_entry_site internal_ribosome_entry_site recoding_stimulatory_region replication_regulatory_region
        transcriptional_cis_regulatory_region enhancer_blocking_element locus_control_region
        imprinting_control_region matrix_attachment_site DNaseI_hypersensitive_site""",
    "tRNA": "tRNA",
    "tmRNA": "tmRNA",
}
GFF3_TYPES: dict[str, str] = {kind: name for name, kinds in GENE_TYPES.items() for kind in kinds.split()}

_LEVELS = {
    "span_level": [task.name for task in TASKS.values() if task.level == "span"],
    "seq_level": [task.name for task in TASKS.values() if task.level == "sequence"],
}
_INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Annotation:
    """One row of an annotation file: a class (by name) of a sequence or of a span of it."""

    file: str
    line: int
    id: str
    task: str
    label: str
    span: tuple[int, int] | None = None

    @property
    def where(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"


def read_annotations(
    files: Iterable[str], gff3_types: Mapping[str, str | None], left_out: dict[str, Counter[str]] | None = None
) -> Iterator[Annotation]:
    """Yield the rows of the annotation files of one source, in order; files named .gff or .gff3 are GFF3, others TSV.

    `gff3_types` (feature type -> class, None: not wanted) adds to GFF3_TYPES; types in neither are left out and counted
    in `left_out[file]`. Raises UserError on a bad row, and on a second class where a sequence can have one only.
    """
    types = {**GFF3_TYPES, **gff3_types}
    classes: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for file in dict.fromkeys(files):
        unknown = Counter[str]()
        if left_out is not None:
            left_out[file] = unknown
        is_gff3 = file.removesuffix(".gz").endswith((".gff", ".gff3"))
        for row in _read_gff3(file, types, unknown) if is_gff3 else _read_tsv(file):
            if row.span is None and not TASKS[row.task].multi_label:
                first = classes[row.task].setdefault(row.id, sys.intern(row.label))
                if first != row.label:
                    hint = f"leave one of the two: {row.task} is one class a sequence"
                    raise UserError(f"{row.id} is {row.label} here, but {first} before", where=row.where, hint=hint)
            yield row


def read_lines(file: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a plain or .gz text file, numbered from 1, without line ends and byte order mark."""
    with reading(file) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                text = (line.removeprefix(BOM) if number == 1 else line).decode().rstrip("\r\n")
            except UnicodeDecodeError:
                hint = "save the file as UTF-8, for example with `iconv -f latin1 -t utf-8`"
                raise _mistake(file, number, "the line is not valid UTF-8", hint) from None
            if "\0" in text:
                raise _mistake(file, number, "is not text", "expected plain text (UTF-8), or gzip in a file named .gz")
            yield number, text


def close_to(name: str, known: Iterable[str]) -> str:
    """Give '; did you mean X?' where one of the known names is close to this one, else nothing."""
    guess = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {guess[0]}?" if guess else ""


def _read_gff3(file: str, types: Mapping[str, str | None], left_out: Counter[str]) -> Iterator[Annotation]:
    circles = _circles(file)
    for number, line in read_lines(file):
        if line.startswith(("##FASTA", ">")):
            return
        if line.startswith("#") or not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) < 9:
            raise _mistake(file, number, f"the row has {len(columns)} columns", "GFF3 has nine, with tabs between them")
        name, kind = unquote(columns[0]), columns[2].strip()
        start, end = _range(file, number, columns[3], columns[4], first=1)
        if label := types.get(kind):
            for span in _unrolled(start - 1, end - 1, circles.get(name, end)):
                yield Annotation(file, number, name, "gene_type", label, span)
        elif kind not in types:
            left_out[kind] += 1


def _circles(file: str) -> dict[str, int]:
    """Lengths of the circular sequences; the row that says so need not come first."""
    rows = (line.split("\t") for _, line in read_lines(file) if "Is_circular=true" in line and not line.startswith("#"))
    return {unquote(row[0]): int(row[4]) for row in rows if len(row) >= 9 and row[4].isdecimal()}


def _mistake(file: str, number: int, what: str, hint: str) -> UserError:
    return UserError(what, where=f"{file}:{number}", hint=hint)


def _unrolled(start: int, end: int, size: int) -> list[tuple[int, int]]:
    """The spans of a feature; on a circular sequence GFF3 counts on past its end."""
    if end < size:
        return [(start, end)]
    return [(start - size, end - size)] if start >= size else [(start, size - 1), (0, end - size)]


def _read_tsv(file: str) -> Iterator[Annotation]:
    header: list[str] = []
    for number, line in read_lines(file):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in _cells(file, number, line)]
        if not header:
            header = cells
            _check_header(file, number, header)
        elif len(cells) != len(header):
            what = f"the row has {len(cells)} columns, the header has {len(header)}"
            raise _mistake(file, number, what, "one tab between columns, also around empty ones")
        else:
            yield _tsv_row(file, number, dict(zip(header, cells, strict=True)))
    if not header:
        raise UserError("is empty: there is no header", where=file, hint="take it out of `annotations` or fill it")


def _cells(file: str, number: int, line: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter="\t", strict=True))
    except csv.Error as error:
        raise _mistake(file, number, f"malformed row ({error})", "close each quote within its cell") from None


def _check_header(file: str, number: int, header: list[str]) -> None:
    missing = [name for name in ("seq_id", "task", "label") if header.count(name) != 1]
    if missing:
        hint = "a TSV begins with seq_id, task, start, end, label (tabs between); GFF3 files are named .gff or .gff3"
        raise _mistake(file, number, f"the header must have the column {', '.join(missing)} once", hint)


def _tsv_row(file: str, number: int, cells: Mapping[str, str]) -> Annotation:
    name, label, task = cells["seq_id"], cells["label"], cells["task"]
    for column in ("seq_id", "task", "label"):
        if not cells[column]:
            raise _mistake(file, number, f"{column} is empty", "fill it, or remove the row")
    if task not in SUPERVISED:
        hint = f"the tasks with labels are {', '.join(SUPERVISED)}"
        raise _mistake(file, number, f"there is no task {task}{close_to(task, SUPERVISED)}", hint)
    start, end = cells.get("start", ""), cells.get("end", "")
    if TASKS[task].level == "span":
        # A table program that knows empty cells only among decimal numbers writes 12.0.
        span = _range(file, number, start.removesuffix(".0"), end.removesuffix(".0"), first=0)
        return Annotation(file, number, name, task, label, span)
    if start or end:
        raise _mistake(file, number, f"{task} labels whole sequences, but here is a span", "leave start and end empty")
    return Annotation(file, number, name, task, label)


def _range(file: str, number: int, start: str, end: str, *, first: int) -> tuple[int, int]:
    """Start and end as written, `first` being the number of the first position."""
    hint = f"positions are whole numbers, counted from {first}, both ends included, start not after end"
    if not (_INTEGER.fullmatch(start) and _INTEGER.fullmatch(end)):
        raise _mistake(file, number, f"start {start!r} and end {end!r} must both be numbers", hint)
    span = int(start), int(end)
    if span[0] < first:
        raise _mistake(file, number, f"start {start} is before the first position, {first}", hint)
    if span[0] > span[1]:
        raise _mistake(file, number, f"start {start} is after end {end}", hint)
    return span


def parse_labels(text: str, molecule: Molecule) -> Labels:
    """Read an obj_label, JSON or a Python literal: {"span_level": {task: ...}, "seq_level": {task: ...}}.

    Empty values mean no label; keys that end in _taxid are passed over. Raises UserError, without a place, on anything
    else that is not a label of the molecule; whether spans and class ids are in range is up to check_labels.
    """
    labels: Labels = {}
    for level, values in _mapping(_literal(text), "obj_label").items():
        if level not in _LEVELS:
            raise UserError(f"obj_label has an unknown key {level!r}", hint=f"its keys: {', '.join(_LEVELS)}")
        for name, value in _mapping(values, level).items():
            if str(name).endswith("_taxid"):
                continue
            if name not in _LEVELS[level]:
                raise UserError(f"{level} has an unknown key {name!r}", hint=f"its keys: {', '.join(_LEVELS[level])}")
            if not _absent(value):
                if TASKS[name].molecule != molecule:
                    hint = "correct obj_type, or leave out the label"
                    raise UserError(f"a {molecule} cannot have a label of {name}", hint=hint)
                labels[name] = _class_ids(TASKS[name], value)
    return labels


def _literal(text: str) -> Any:
    if not text.strip():
        return None
    # Most labels are Python literals that differ from JSON in this only; the third way takes ten times as long.
    for attempt in (text, text.replace("'", '"').replace("None", "null")):
        try:
            return json.loads(attempt)
        except (ValueError, RecursionError):
            pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        hint = 'write it as JSON, for example {"span_level": {}, "seq_level": {"gene_taxonomy": 12}}'
        raise UserError(f"obj_label is neither JSON nor a Python literal: {text[:60]}", hint=hint) from None


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def _mapping(value: Any, name: str) -> dict[Any, Any]:
    if _absent(value):
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{name} is not an object", hint='write {"key": value, ...}, or leave it empty')
    return value


def _class_ids(task: Task, value: Any) -> list[tuple[int, ...]]:
    form, width, rows = "one class id", 1, [value]
    if task.level == "span":
        form, width, rows = "a list of [start, end, class id]", 3, value
    elif task.multi_label:
        form, rows = "a list of class ids", value
    if isinstance(rows, list | tuple):
        rows = [row if width == 3 else (row,) for row in rows]
        if all(isinstance(row, list | tuple) and [type(number) for number in row] == [int] * width for row in rows):
            # A bool would be an int by isinstance. Of spans order and every row count, of keywords neither.
            return [tuple(row) for row in (rows if width == 3 else dict.fromkeys(rows))]
    raise UserError(f"{task.name} is not {form}: {str(value)[:60]}", hint="all numbers must be whole")


def check_labels(labels: Labels, length: int, sizes: Mapping[str, int]) -> None:
    """Raise UserError, without a place, on a span outside a sequence of `length` or an id not below its task's size."""
    for task, rows in labels.items():
        for *span, number in rows:
            if not 0 <= number < sizes[task]:
                hint = "use the vocabulary that the ids were made with (`vocabularies` in the configuration)"
                what = f"the vocabulary of {task} has {sizes[task]} classes, from 0; there is no class {number}"
                raise UserError(what, hint=hint)
            if span and not 0 <= span[0] <= span[1] < length:
                hint = "a span is start, end on the whole sequence: from 0, both ends included, start not after end"
                raise UserError(f"the {task} span {span} is not within the sequence of {length} residues", hint=hint)


def window_labels(labels: Labels, start: int, end: int) -> Labels:
    """Labels of the window [start, end): spans are cut to it and counted from its start, classes of the whole stay."""
    cut: Labels = {}
    for task, rows in labels.items():
        if TASKS[task].level == "span":
            rows = [
                (max(first, start) - start, min(last, end - 1) - start, number)
                for first, last, number in rows
                if first < end and last >= start
            ]
        if rows:
            cut[task] = list(rows)
    return cut
