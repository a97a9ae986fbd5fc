"""Label vocabularies over all sources, the ids of annotations, and a source's labels as class ids."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucavirus.blocks import Unit
from lucavirus.config import Settings
from lucavirus.config_data import Source
from lucavirus.config_load import load_settings
from lucavirus.errors import UserError
from lucavirus.fasta import read_fasta
from lucavirus.record_batches import Record
from lucavirus.records import read_csv
from lucavirus.tasks import SUPERVISED
from lucavirus.vocabularies import SourceLabels, Summary, build_vocabularies, read_vocabulary
from tests.mistakes import mistake

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared/data"

GENES = ">g1 one\nACGTACGTAC\n>g2\nACGT\n"
PROTEINS = ">p1\nMKLVMKLV\n>p2\nMKL\n"
GFF3 = (
    "g1\t.\tregion\t1\t10\t.\t+\t.\t.\n"
    "g1\t.\ttRNA\t2\t4\t.\t+\t.\t.\n"
    "g1\t.\tpromoter\t1\t1\t.\t+\t.\t.\n"
    "g2\t.\tCDS\t1\t4\t.\t+\t0\t.\n"
)
TSV = (
    "seq_id\ttask\tstart\tend\tlabel\n"
    "g1\tgene_taxonomy\t\t\tPiccovirales\n"
    "p1\tprot_taxonomy\t\t\tCaudovirales\n"
    "p1\tprot_keyword\t\t\tVirion\n"
    "p1\tprot_keyword\t\t\tCapsid protein\n"
    "p1\tprot_keyword\t\t\tVirion\n"
    "p2\tprot_domain\t0\t2\tb domain\n"
    "p1\tprot_domain\t0\t3\tb domain\n"
    "p1\tprot_domain\t2\t7\ta domain\n"
    "p1\tprot_domain\t2\t7\tZ domain\n"
)
NAMES = {
    "gene_type": ("CDS", "regulatory", "tRNA"),
    "prot_homo": (),
    "prot_site": (),
    "prot_domain": ("Z domain", "a domain", "b domain"),
    "gene_taxonomy": ("Piccovirales",),
    "prot_taxonomy": ("Caudovirales",),
    "prot_keyword": ("Capsid protein", "Virion"),
}
Case = Callable[..., Settings]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Settings over files in tmp_path: genes.fasta with a GFF3, proteins.fasta.gz, labels.tsv for both."""

    def _case(files: dict[str, str] | None = None, sources: Any = None, **more: Any) -> Settings:
        texts = {"genes.fasta": GENES, "proteins.fasta.gz": PROTEINS, "genes.gff3": GFF3, "labels.tsv": TSV}
        for name, text in {**texts, **(files or {})}.items():
            data = text.encode()
            (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        default = [
            {"name": "g", "kind": "gene", "files": ["genes.fasta"], "annotations": ["genes.gff3", "labels.tsv"]},
            {"name": "p", "kind": "prot", "files": ["proteins.fasta.gz"], "annotations": ["labels.tsv"]},
        ]
        chosen = [
            {key: [str(tmp_path / file) for file in value] if key in ("files", "annotations") else value
             for key, value in source.items()}
            for source in sources or default
        ]  # fmt: skip
        if "vocabularies" in more:
            more["vocabularies"] = {task: str(tmp_path / file) for task, file in more["vocabularies"].items()}
        return load_settings({"project": "x", "sources": chosen, "runs": {"full": {}}, **more})

    return _case


def written(folder: Path) -> dict[str, tuple[str, ...]]:
    return {path.stem: read_vocabulary(path) for path in folder.iterdir()}


def test_names_that_differ_in_case_only_are_told(case: Case, tmp_path: Path) -> None:
    rows = "".join(
        f"{seq}\tprot_keyword\t\t\t{name}\n" for seq, name in (("p1", "virion"), ("p2", "VIRION"), ("p2", "A"))
    )
    told = str(build_vocabularies(case({"labels.tsv": TSV + rows}), tmp_path / "out")).splitlines()
    assert [line for line in told if "warning" in line] == [
        "warning: VIRION and Virion of prot_keyword differ in case only, and are two classes",
        "warning: Virion and virion of prot_keyword differ in case only, and are two classes",
    ]


def test_vocabularies_are_the_sorted_names_of_all_sources(case: Case, tmp_path: Path) -> None:
    summary = build_vocabularies(case(), tmp_path / "made/out")
    assert written(tmp_path / "made/out") == NAMES
    assert (tmp_path / "made/out/gene_type.txt").read_bytes() == b"CDS\nregulatory\ntRNA\n"
    assert (tmp_path / "made/out/prot_site.txt").read_bytes() == b""
    assert summary == Summary({task: len(NAMES[task]) for task in SUPERVISED}, Counter({"region": 1}))
    assert (
        "warning" not in str(summary)
        and "prot_site: 0 classes (no labels found)" in str(summary)
        and "left out: region 1" in str(summary)
    )


def test_given_vocabularies_keep_their_order_and_their_unused_names(case: Case, tmp_path: Path) -> None:
    settings = case(
        {"types.txt": "tRNA\r\ntmRNA\r\nregulatory\r\nCDS", "words.txt": "\ufeffVirion\nCapsid protein\nUnseen\n\n\n"},
        vocabularies={"gene_type": "types.txt", "prot_keyword": "words.txt"},
    )
    build_vocabularies(settings, tmp_path / "out")
    assert (tmp_path / "out/gene_type.txt").read_bytes() == b"tRNA\ntmRNA\nregulatory\nCDS\n"
    assert (tmp_path / "out/prot_keyword.txt").read_bytes() == b"Virion\nCapsid protein\nUnseen\n"
    assert written(tmp_path / "out")["prot_domain"] == NAMES["prot_domain"]


def test_own_feature_types_make_classes(case: Case, tmp_path: Path) -> None:
    build_vocabularies(case(gff3_types={"region": "whole", "promoter": None}), tmp_path / "out")
    assert written(tmp_path / "out")["gene_type"] == ("CDS", "tRNA", "whole")


def test_names_missing_in_a_given_vocabulary(case: Case, tmp_path: Path) -> None:
    settings = case({"words.txt": "Virion\nCapsid proteins\n"}, vocabularies={"prot_keyword": "words.txt"})
    message = mistake(lambda: build_vocabularies(settings, tmp_path / "out"))
    assert message.startswith(f"{tmp_path}/labels.tsv:5: Capsid protein is not in the vocabulary")
    assert "did you mean Capsid proteins?" in message
    settings = case({"types.txt": "CDS\ntRNA\n"}, vocabularies={"gene_type": "types.txt"})
    message = mistake(lambda: build_vocabularies(settings, tmp_path / "out"))
    assert message.startswith(f"{tmp_path}/genes.gff3:3: regulatory is not in the vocabulary given for gene_type")
    assert "gff3_types" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        (b"a\n\nb\n", ":2", "an empty line in a vocabulary"),
        (b"a\nb\na \n", ":3", "the class a is also on line 1"),
        (b"a\ncaf\xe9\n", ":2", "the line is not valid UTF-8"),
        (b"a\nb\0\n", ":2", "is not text"),
    ],
)
def test_bad_vocabularies(tmp_path: Path, content: bytes, where: str, what: str) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes(content)
    assert mistake(lambda: read_vocabulary(path)).startswith(f"{path}{where}: {what}")
    path.unlink()
    assert mistake(lambda: read_vocabulary(path)).startswith(f"{path}: cannot be read")


def test_a_csv_needs_all_vocabularies(case: Case, tmp_path: Path) -> None:
    files = {"a.csv": "obj_id,obj_type,obj_seq,obj_label\nx,gene,ACGT,\n", "v.txt": "x\n"}
    sources = [{"name": "c", "files": ["a.csv"]}]
    given = dict.fromkeys(SUPERVISED, "v.txt")
    build_vocabularies(case(files, sources, vocabularies=given), tmp_path / "out")
    assert set(written(tmp_path / "out").values()) == {("x",)}
    del given["prot_site"], given["gene_type"]
    message = mistake(lambda: build_vocabularies(case(files, sources, vocabularies=given), tmp_path / "out"))
    assert "the class ids in the CSV of source c need a label file for every task" in message
    assert "vocabularies:\n    gene_type: path/to/gene_type.txt\n    prot_site: path/to/prot_site.txt" in message


G = {"name": "g", "kind": "gene", "files": ["genes.fasta"], "annotations": ["genes.gff3", "labels.tsv"]}
P = {"name": "p", "kind": "prot", "files": ["proteins.fasta.gz"], "annotations": ["labels.tsv"]}


@pytest.mark.parametrize(
    ("files", "sources", "what"),
    [
        (
            {"genes.gff3": GFF3 + "g3\t.\tCDS\t1\t4\t.\t+\t0\t.\n"},
            [G, P],
            "genes.gff3:5: the label of the gene g3 is used by no source: there is no such id in g",
        ),
        (
            {"labels.tsv": TSV + "p4\tprot_taxonomy\t\t\tX\np4\tprot_keyword\t\t\tX\np3\tprot_keyword\t\t\tX\n"},
            [G, P],
            "labels.tsv:11: the label of the prot p4 is used by no source: there is no such id in p (and 1 more ids)",
        ),
        (
            {"labels.tsv": TSV + "p2\tgene_taxonomy\t\t\tX\n"},
            [G, P],
            "labels.tsv:11: the label of the gene p2 is used by no source: the id is in source p, whose kind is prot",
        ),
        (
            {},
            [G, {**P, "annotations": []}],
            "labels.tsv:3: the label of the prot p1 is used by no source: "
            "the id is in source p, which does not list this file (and 1 more ids)",
        ),
        (
            {},
            [G],
            "labels.tsv:3: the label of the prot p1 is used by no source: "
            "no source of kind prot lists this file (and 1 more ids)",
        ),
        # The id is that of a header's first word, and no part of it.
        (
            {"genes.gff3": "one\t.\tCDS\t1\t4\t.\t+\t0\t.\n"},
            [G, P],
            "genes.gff3:1: the label of the gene one is used by no source: there is no such id in g",
        ),
    ],
)
def test_ids_that_no_source_uses(case: Case, tmp_path: Path, files: Any, sources: Any, what: str) -> None:
    message = mistake(lambda: build_vocabularies(case(files, sources), tmp_path / "out"))
    assert message.startswith(f"{tmp_path}/{what}\n")
    assert not (tmp_path / "out").exists()


def test_ids_are_not_looked_for_in_a_csv(case: Case, tmp_path: Path) -> None:
    files = {"a.csv": "obj_id,obj_type,obj_seq,obj_label\nx,gene,ACGT,\n", "v.txt": "x\n"}
    sources = [{"name": "c", "files": ["a.csv"]}, {**G, "annotations": ["labels.tsv"]}]
    files["labels.tsv"] = "seq_id\ttask\tlabel\ng9\tgene_taxonomy\tx\n"
    settings = case(files, sources, vocabularies=dict.fromkeys(SUPERVISED, "v.txt"))
    message = mistake(lambda: build_vocabularies(settings, tmp_path / "out"))
    assert "the label of the gene g9 is used by no source: there is no such id in g\n" in message


def test_an_id_may_be_in_any_of_the_sources_that_list_the_file(case: Case, tmp_path: Path) -> None:
    sources = [
        {**G, "annotations": ["genes.gff3", "labels.tsv"]},
        {"name": "more", "kind": "gene", "files": ["more.fasta"], "annotations": ["labels.tsv"]},
        P,
    ]
    files = {"more.fasta": ">h1\nACGT\n", "labels.tsv": TSV + "h1\tgene_taxonomy\t\t\tY\n"}
    build_vocabularies(case(files, sources), tmp_path / "out")
    assert written(tmp_path / "out")["gene_taxonomy"] == ("Piccovirales", "Y")


def test_ids_of_features_that_are_left_out_need_not_exist(case: Case, tmp_path: Path) -> None:
    gene = "chr9\t.\tgene\t1\t4\t.\t+\t.\t.\n"
    summary = build_vocabularies(case({"genes.gff3": GFF3 + 2 * gene}), tmp_path / "out")
    assert "left out: gene 2, region 1 (see gff3_types)" in str(summary)


# labels of a source ----------------------------------------------------------------------------------------------


def source_labels(settings: Settings, name: str, vocabularies: Any = None) -> tuple[Source, SourceLabels]:
    source = next(source for source in settings.sources if source.name == name)
    return source, SourceLabels(source, vocabularies or NAMES, settings.gff3_types)


def test_labels_of_a_fasta_become_class_ids(case: Case) -> None:
    settings = case()
    source, labels = source_labels(settings, "g")
    genes = {
        record.id: labels.of(record, 10) for batch in read_fasta(Unit(source.files[0]), "gene") for record in batch
    }
    assert genes == {
        "g1": {"gene_type": [(1, 3, 2), (0, 0, 1)], "gene_taxonomy": [(0,)]},
        "g2": {"gene_type": [(0, 3, 0)]},
    }
    assert labels.left_out[settings.sources[0].annotations[0]] == Counter({"region": 1})
    source, labels = source_labels(settings, "p")
    proteins = {
        record.id: labels.of(record, 8) for batch in read_fasta(Unit(source.files[0]), "prot") for record in batch
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


def test_a_span_beyond_the_sequence_is_told_with_the_line_of_its_row(case: Case, tmp_path: Path) -> None:
    _, labels = source_labels(case(), "p")
    message = mistake(lambda: labels.of(Record("p1", "prot", b"", "p.fasta", 0), 7))
    assert message.startswith(f"{tmp_path}/labels.tsv:9: the prot_domain span [2, 7] is not within the sequence of 7")
    _, labels = source_labels(case(), "g")
    message = mistake(lambda: labels.of(Record("g2", "gene", b"", "g.fasta", 0), 3))
    assert message.startswith(f"{tmp_path}/genes.gff3:4: the feature from 1 to 4 is not within the sequence of 3 res")
    assert "counts from 1" in message and "Is_circular=true" in message


def test_names_missing_in_the_vocabulary_of_the_shards(case: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels.tsv:5: Capsid protein is not in the vocabulary"):
        source_labels(case(), "p", {**NAMES, "prot_keyword": ("Virion",)})
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
    found = list(read_csv(Unit(str(path))))
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


# real data, and the script ---------------------------------------------------------------------------------------


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
        for record in (record for batch in read_fasta(Unit(source.files[0]), source.kind) for record in batch):
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
    found = [labels.of(record, len(record.tokens)) for record in read_csv(Unit(file))]
    assert len(found) == 1500 and sum("prot_keyword" in row for row in found) > 500


def test_script(case: Case, tmp_path: Path) -> None:
    script = ROOT / "workflow_scripts/vocabularies.py"
    settings = tmp_path / "settings.json"

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), "--settings", str(settings), "--out", str(tmp_path / "out")]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})

    settings.write_text(case().model_dump_json())
    done = run()
    assert done.returncode == 0 and "gene_type: 3 classes" in done.stdout, done.stderr
    assert written(tmp_path / "out") == NAMES
    settings.write_text(case({"genes.gff3": GFF3.replace("g2", "g9")}).model_dump_json())
    done = run()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"error: {tmp_path}/genes.gff3:4: the label of the gene g9 is used by no source")
