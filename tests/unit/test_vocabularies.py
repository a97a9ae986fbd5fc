"""Label vocabularies over all sources, and the ids of annotations."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lucavirus.tasks import SUPERVISED
from lucavirus.vocabularies import Summary, build_vocabularies, read_vocabulary
from tests.annotated import GFF3, NAMES, TSV, Case, G, P
from tests.mistakes import mistake

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared/data"


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


def test_labels_that_change_while_they_are_read_are_read_again(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made of them would be newer than the change, and Snakemake not see it."""
    settings = case({"words.txt": "Virion\nCapsid protein\n"}, vocabularies={"prot_keyword": "words.txt"})
    for name in ("labels.tsv", "words.txt"):
        file = tmp_path / name
        monkeypatch.setattr(
            "lucavirus.vocabularies.check_annotated_ids", lambda *_, file=file: os.utime(file, ns=(5, 5))
        )
        message = mistake(lambda: build_vocabularies(settings, tmp_path / "out"))
        assert message == f"{file}: was changed while it was read\n  What to do: start the same command again"
        assert not (tmp_path / "out").exists()
    build_vocabularies(settings, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "words.txt").unlink()
    assert mistake(lambda: build_vocabularies(settings, tmp_path / "out")).startswith(f"{file}: cannot be read")


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
    assert message.startswith(f"{tmp_path}/genes.gff3:3: regulatory is not in the vocabulary of gene_type")
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
