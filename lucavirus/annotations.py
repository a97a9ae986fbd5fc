"""Labels by name from annotation files, GFF3 and TSV.

Spans are (start, end): positions of the sequence's body from 0, both ends included.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from lucavirus.blocks import BOM, reading
from lucavirus.errors import UserError, close_to
from lucavirus.tasks import SUPERVISED, TASKS

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

# GFF3 types of the row that describes a whole sequence.
_WHOLE = ("region", "chromosome", "plasmid", "genome", "sequence_feature", "databank_entry")
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
        for row in _read_gff3(file, types, unknown) if is_gff3(file) else _read_tsv(file):
            if row.span is None and not TASKS[row.task].multi_label:
                first = classes[row.task].setdefault(row.id, sys.intern(row.label))
                if first != row.label:
                    hint = f"leave one of the two: {row.task} is one class a sequence"
                    raise UserError(f"{row.id} is {row.label} here, but {first} before", where=row.where, hint=hint)
            yield row


def is_gff3(file: str) -> bool:
    """True for GFF3 files, by their names."""
    return file.removesuffix(".gz").endswith((".gff", ".gff3"))


def read_lines(file: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a plain or .gz text file, numbered from 1, without line ends and byte order mark."""
    with reading(file) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                text = (line.removeprefix(BOM) if number == 1 else line).decode().rstrip("\r\n")
            except UnicodeDecodeError:
                now = "utf-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else "latin1"
                hint = f"save the file as UTF-8, for example with `iconv -f {now} -t utf-8`"
                raise _mistake(file, number, "the line is not valid UTF-8", hint) from None
            if "\0" in text:
                raise _mistake(file, number, "is not text", "expected plain text (UTF-8), or gzip in a file named .gz")
            if "\r" in text:
                hint = "save it with the line ends of Unix, for example with `tr '\\r' '\\n'`"
                raise _mistake(file, number, "has a carriage return within a line", hint)
            yield number, text


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
    """Lengths of the circular sequences; the row that says so need not come first.

    It is the row of the whole sequence: others (a circular RNA, say) may be circular too.
    """
    rows = (line.split("\t") for _, line in read_lines(file) if "Is_circular=true" in line and not line.startswith("#"))
    whole = (row for row in rows if len(row) >= 9 and _INTEGER.fullmatch(row[4]) and _is_whole(row))
    return {unquote(row[0]): int(row[4]) for row in whole}


def _is_whole(row: list[str]) -> bool:
    """True for the row of a whole sequence: from its first position, of such a type or with the sequence's id."""
    return row[3].strip() == "1" and (row[2] in _WHOLE or f"ID={row[0]}" in row[8].strip().split(";"))


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
        what = f"the header must have the column {', '.join(missing)} once, and not {', '.join(header)[:80]}"
        raise _mistake(file, number, what, hint)


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
        if absent := [column for column in ("start", "end") if column not in cells]:
            what = f"{task} labels spans, and the header has no column {' and no '.join(absent)}"
            raise _mistake(file, number, what, "name the columns start and end")
        if not start and not end:
            raise _mistake(file, number, f"{task} labels spans, but start and end are empty", "fill both")
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
