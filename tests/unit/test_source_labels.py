"""A source's labels as class ids: of annotation files, of a CSV, of real data."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lucavirus.blocks import Range
from lucavirus.config import Settings
from lucavirus.config_data import Source
from lucavirus.config_load import load_settings
from lucavirus.errors import UserError
from lucavirus.fasta import read_fasta
from lucavirus.record_batches import Record
from lucavirus.records import read_csv
from lucavirus.tasks import SUPERVISED
from lucavirus.vocabularies import SourceLabels, build_vocabularies, read_vocabulary
from tests.annotated import NAMES, TSV, Case
from tests.mistakes import mistake

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared/data"


def source_labels(settings: Settings, name: str, vocabularies: Any = None) -> tuple[Source, SourceLabels]:
    source = next(source for source in settings.sources if source.name == name)
    return source, SourceLabels(source, vocabularies or NAMES, settings.gff3_types)


def test_labels_of_a_fasta_become_class_ids(case: Case) -> None:
    settings = case()
    source, labels = source_labels(settings, "g")
    genes = {
        record.id: labels.of(record, 10) for batch in read_fasta(Range(source.files[0]), "gene") for record in batch
    }
    assert genes == {
        "g1": {"gene_type": [(1, 3, 2), (0, 0, 1)], "gene_taxonomy": [(0,)]},
        "g2": {"gene_type": [(0, 3, 0)]},
    }
    assert labels.left_out[settings.sources[0].annotations[0]] == Counter({"region": 1})
    source, labels = source_labels(settings, "p")
    proteins = {
        record.id: labels.of(record, 8) for batch in read_fasta(Range(source.files[0]), "prot") for record in batch
    }
    assert proteins == {
        # The file's order, in which later spans overwrite earlier ones; a keyword given twice counts once.
        "p1": {
            "prot_domain": [(0, 3, 2), (2, 7, 1), (2, 7, 0)],
            "prot_taxonomy": [(0,)],
            "prot_keyword": [(1,), (0,)],
        },
        "p2": {"prot_domain": [(0, 2, 2)]},
    }
    assert labels.of(Record("p9", "prot", b"MKL", "x", 0), 3) == {}


def test_the_order_of_rows_is_kept_among_many(case: Case) -> None:
    spans = [(f"p{1 + n % 2}", n % 7, 7 + n % 11, n % 3) for n in range(5000)]
    rows = "".join(f"{name}\tprot_domain\t{start}\t{end}\t{'Zab'[k]} domain\n" for name, start, end, k in spans)
    _, labels = source_labels(case({"labels.tsv": TSV.splitlines(keepends=True)[0] + rows}), "p")
    found = labels.of(Record("p2", "prot", b"", "x", 0), 100)
    assert found == {"prot_domain": [span[1:] for span in spans if span[0] == "p2"]}


def test_a_span_beyond_the_sequence_is_told_with_the_line_of_its_row_and_of_the_sequence(
    case: Case, tmp_path: Path
) -> None:
    (tmp_path / "again.fasta").write_text(">x\nA\n>again\nA\n")
    _, labels = source_labels(case(), "p")
    message = mistake(lambda: labels.of(Record("p1", "prot", b"", f"{tmp_path}/again.fasta", 5), 7))
    assert message.startswith(
        f"{tmp_path}/labels.tsv:9: the prot_domain span [2, 7] is not within the sequence of 7 residues, "
        f"p1 at {tmp_path}/again.fasta:3"
    )
    # Of several the first of the file, though rows of the other task are checked before it.
    rows = "p1\tprot_site\t0\t1\tA\np1\tprot_domain\t2\t77\tA\np1\tprot_site\t3\t99\tA\n"
    several = case({"labels.tsv": TSV.splitlines(keepends=True)[0] + rows})
    _, labels = source_labels(several, "p", dict.fromkeys(SUPERVISED, ("A",)))
    message = mistake(lambda: labels.of(Record("p1", "prot", b"", f"{tmp_path}/again.fasta", 5), 7))
    assert message.startswith(f"{tmp_path}/labels.tsv:3: the prot_domain span [2, 77] is not within")
    _, labels = source_labels(case(), "g")
    message = mistake(lambda: labels.of(Record("g2", "gene", b"", f"{tmp_path}/again.fasta", 0), 3))
    assert message.startswith(
        f"{tmp_path}/genes.gff3:4: the feature from 1 to 4 is not within the sequence of 3 residues, "
        f"g2 at {tmp_path}/again.fasta:1"
    )
    assert "counts from 1" in message and "Is_circular=true" in message


def test_names_missing_in_the_vocabulary_of_the_shards(case: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels.tsv:5: Capsid protein is not in the vocabulary") as caught:
        source_labels(case(), "p", {**NAMES, "prot_keyword": ("Virion",)})
    assert f"`vocabularies: prot_keyword`; where there is none, `touch {tmp_path}/labels.tsv`" in caught.value.hint
    source_labels(case(), "g", {**NAMES, "prot_keyword": ("Virion",)})  # not a label of genes


def test_another_order_of_classes_is_another_vocabulary(case: Case) -> None:
    turned = {task: names[::-1] for task, names in NAMES.items()}
    (_, now), (_, then) = source_labels(case(), "p"), source_labels(case(), "p", turned)
    assert {task for task in NAMES if now.digests[task] != then.digests[task]} == {
        task for task, names in NAMES.items() if len(names) > 1
    }


def test_labels_of_a_csv(case: Case, tmp_path: Path) -> None:
    rows = [
        ("a", "gene", "ACGT", json.dumps({"span_level": {"gene_type": [[0, 3, 2]]}, "seq_level": {"gene_taxid": 7}})),
        ("b", "prot", "MKL", json.dumps({"seq_level": {"prot_keyword": [1, 1, 0]}})),
        ("c", "prot", "MKL", json.dumps({"span_level": {"prot_domain": [[1, 3, 0]]}})),
        ("d", "prot", "MKL", json.dumps({"seq_level": {"prot_taxonomy": 1}})),
        ("e", "prot", "MKL", json.dumps({"seq_level": {"gene_taxonomy": 0}})),
    ]
    path = tmp_path / "a.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("obj_id", "obj_type", "obj_seq", "obj_label"), *rows])
    labels = SourceLabels(Source(name="c", files=(str(path),)), NAMES, {})
    found = list(read_csv(Range(str(path))))
    assert labels.of(found[0], 4) == {"gene_type": [(0, 3, 2)]}
    assert labels.of(found[1], 3) == {"prot_keyword": [(1,), (0,)]}
    for number, what in (
        (2, "the prot_domain span [1, 3] is not within the sequence of 3 residues"),
        (3, "the vocabulary of prot_taxonomy has 1 classes, from 0; there is no class 1"),
        (4, "a prot cannot have a label of gene_taxonomy"),
    ):
        with pytest.raises(UserError) as caught:
            labels.of(found[number], 3)
        assert str(caught.value).startswith(f"{path}:{number + 2}: {what}")


def real() -> dict[str, Any]:
    folder = SHARED / "viruses"
    if not folder.exists():
        pytest.skip(f"no shared data at {folder}")
    both = [str(folder / "labels.tsv")]
    return {
        "project": "x",
        "runs": {"full": {}},
        "sources": [
            {"name": "g", "kind": "gene", "files": [str(folder / "genomes.fasta.gz")],
             "annotations": [str(folder / "genomes.gff3.gz"), *both]},
            {"name": "p", "kind": "prot", "files": [str(folder / "proteins.fasta.gz")], "annotations": both},
        ],
    }  # fmt: skip


def test_real_sources(tmp_path: Path) -> None:
    settings = load_settings(real())
    summary = build_vocabularies(settings, tmp_path)
    assert summary.classes == {"gene_type": 2, "prot_homo": 0, "prot_site": 0, "prot_domain": 0,
                               "gene_taxonomy": 10, "prot_taxonomy": 7, "prot_keyword": 0}  # fmt: skip
    assert summary.left_out.total() == 344
    vocabularies = {task: read_vocabulary(tmp_path / f"{task}.txt") for task in SUPERVISED}
    for source in settings.sources:
        assert source.kind
        labels = SourceLabels(source, vocabularies, {})
        for record in (record for batch in read_fasta(Range(source.files[0]), source.kind) for record in batch):
            assert len(labels.of(record, len(record.tokens))[f"{source.kind}_taxonomy"]) == 1


def test_real_openvirus_labels_fit_their_vocabularies() -> None:
    folder = SHARED / "openvirus"
    if not folder.exists():
        pytest.skip(f"no shared data at {folder}")
    vocabularies = {task: read_vocabulary(folder / f"labels/{task}.txt") for task in SUPERVISED}
    counts = {"gene_type": 8, "prot_homo": 1659, "prot_site": 476, "prot_domain": 3460,
              "gene_taxonomy": 63, "prot_taxonomy": 55, "prot_keyword": 603}  # fmt: skip
    assert {task: len(names) for task, names in vocabularies.items()} == counts
    file = str(folder / "part_00.csv.gz")
    labels = SourceLabels(Source(name="c", files=(file,)), vocabularies, {})
    found = [labels.of(record, len(record.tokens)) for record in read_csv(Range(file))]
    assert len(found) == 1500 and sum("prot_keyword" in row for row in found) > 500
