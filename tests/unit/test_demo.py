"""The demo's input: the same bytes each time, well-formed, every task learnable in principle and no class dominant."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from lucavirus.demo import DOMAINS, ELEMENTS, FILES, ORDERS, write_demo
from lucavirus.errors import UserError

STOPS = {"TAA", "TAG", "TGA"}
SPAN_TASKS = ("prot_homo", "prot_site", "prot_domain")
# Classes of each task; the largest share a constant answer may reach (keywords: of proteins that carry one keyword).
EXPECTED = {
    "gene_type": (4, 0.48),
    "gene_taxonomy": (5, 0.22),
    "prot_taxonomy": (5, 0.22),
    "prot_homo": (5, 0.40),
    "prot_site": (5, 0.40),
    "prot_domain": (6, 0.22),
    "prot_keyword": (8, 0.50),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    write_demo(folder)
    return folder


def read_fasta(path: Path) -> dict[str, str]:
    parts: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.startswith(">"):
            name = line[1:].split()[0]
            assert name not in parts
            parts[name] = []
        else:
            assert 0 < len(line) <= 80
            parts[name].append(line)
    return {name: "".join(lines) for name, lines in parts.items()}


def read_features(folder: Path) -> list[list[str]]:
    lines = (folder / "genomes.gff3").read_text().splitlines()
    assert lines[0] == "##gff-version 3"
    return [line.split("\t") for line in lines if not line.startswith("#")]


def read_labels(folder: Path) -> list[list[str]]:
    rows = [line.split("\t") for line in (folder / "labels.tsv").read_text().splitlines()]
    assert rows[0] == ["seq_id", "task", "start", "end", "label"]
    return rows[1:]


def weights_of_classes(folder: Path) -> dict[str, Counter[str]]:
    """Count, per task and class, labelled positions (span tasks) or sequences."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for _, _, kind, start, end, *_ in read_features(folder):
        if kind not in ("region", "gene"):
            counts["gene_type"][kind] += int(end) - int(start) + 1
    for _, task, start, end, label in read_labels(folder):
        counts[task][label] += int(end) - int(start) + 1 if task in SPAN_TASKS else 1
    return counts


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(demo: Path, tmp_path: Path) -> None:
    write_demo(tmp_path / "again")
    write_demo(tmp_path / "other", seed=7)
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(FILES)
    for name in FILES:
        content = (demo / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == content
        assert (tmp_path / "other" / name).read_bytes() != content


def test_the_bytes_are_those_of_every_machine(demo: Path) -> None:
    digest = hashlib.sha256(b"".join((demo / name).read_bytes() for name in FILES)).hexdigest()
    assert digest == "ea6c14b478d7706de45923afe5098262a9638d497c7bdd0c5a908dcd23238579", (
        "the demo's data changed: check its figures and the times told in the docs, then this"
    )


def test_a_negative_seed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the seed is -1"):
        write_demo(tmp_path / "none", seed=-1)
    assert not (tmp_path / "none").exists()


def test_genomes_look_like_real_input(demo: Path) -> None:
    genomes = read_fasta(demo / "genomes.fasta")
    assert list(genomes) == [f"DEMO_G{n:04d}" for n in range(1, 201)]
    assert all(400 <= len(sequence) <= 1700 for sequence in genomes.values())
    assert set("".join(genomes.values())) == set("ACGTNacgt")
    assert len(set(genomes.values())) == 200
    assert sum(sequence != sequence.upper() for sequence in genomes.values()) == 10
    assert sum("N" in sequence.upper() for sequence in genomes.values()) == 9


def test_proteins_have_the_standard_residues(demo: Path) -> None:
    proteins = read_fasta(demo / "proteins.fasta")
    assert list(proteins) == [f"DEMO_P{n:04d}" for n in range(1, 601)]
    assert all(60 <= len(sequence) <= 250 and sequence[0] == "M" for sequence in proteins.values())
    assert set("".join(proteins.values())) == set("ACDEFGHIKLMNPQRSTVWY")
    assert len(set(proteins.values())) == 600


def test_every_coding_sequence_translates(demo: Path) -> None:
    genomes = read_fasta(demo / "genomes.fasta")
    strands = Counter[str]()
    for seqid, _, kind, start, end, _, strand, phase, _ in read_features(demo):
        if kind != "CDS":
            continue
        bases = genomes[seqid][int(start) - 1 : int(end)].upper()
        if strand == "-":
            bases = bases[::-1].translate(str.maketrans("ACGT", "TGCA"))
        codons = [bases[i : i + 3] for i in range(0, len(bases), 3)]
        assert len(bases) % 3 == 0
        assert codons[0] == "ATG"
        assert codons[-1] in STOPS
        assert not STOPS.intersection(codons[:-1])
        assert phase == "0"
        strands[strand] += 1
    assert strands["+"] > strands["-"] > 0


def test_features_lie_in_their_genome_in_order_and_apart(demo: Path) -> None:
    genomes = read_fasta(demo / "genomes.fasta")
    previous: dict[str, int] = defaultdict(int)
    kinds = Counter[str]()
    for row in read_features(demo):
        assert len(row) == 9
        seqid, kind, start, end = row[0], row[2], int(row[3]), int(row[4])
        kinds[kind] += 1
        assert 1 <= start <= end <= len(genomes[seqid])
        if kind == "region":
            assert (start, end) == (1, len(genomes[seqid]))
        elif kind != "gene":
            assert start > previous[seqid]
            previous[seqid] = end
    assert kinds["region"] == 200
    assert kinds["gene"] == kinds["CDS"] == kinds["tRNA"] == kinds["ncRNA"] == kinds["regulatory_region"] > 300


def test_labels_name_known_sequences_and_lie_in_them(demo: Path) -> None:
    genomes, proteins = read_fasta(demo / "genomes.fasta"), read_fasta(demo / "proteins.fasta")
    for name, task, start, end, label in read_labels(demo):
        sequence = (genomes if task == "gene_taxonomy" else proteins)[name]
        assert label == label.strip() != ""
        if task in SPAN_TASKS:
            assert 0 <= int(start) <= int(end) < len(sequence)
        else:
            assert (start, end) == ("", "")


def test_a_site_lies_in_its_domain(demo: Path) -> None:
    spans: dict[str, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for name, task, first, last, _ in read_labels(demo):
        if task in SPAN_TASKS:
            spans[name][task].append((int(first), int(last)))
    for of_protein in spans.values():
        assert of_protein["prot_homo"] == of_protein["prot_domain"]
        for domain, site in zip(of_protein["prot_domain"], of_protein["prot_site"], strict=True):
            assert domain[0] < site[0] < site[1] == site[0] + 8 < domain[1]


def alike(one: str, other: str) -> float:
    """Fraction of equal letters of two texts of one length."""
    return sum(a == b for a, b in zip(one.upper(), other, strict=True)) / len(other)


def test_a_label_of_a_protein_tells_what_lies_there(demo: Path) -> None:
    proteins = read_fasta(demo / "proteins.fasta")
    keywords: dict[str, set[str]] = defaultdict(set)
    due: dict[str, set[str]] = defaultdict(set)
    likeness: dict[str, list[float]] = defaultdict(list)
    for name, task, first, last, label in read_labels(demo):
        if task in SPAN_TASKS:
            part = proteins[name][int(first) : int(last) + 1]
            texts = {
                "prot_homo": [d.consensus for d in DOMAINS if d.superfamily == label],
                "prot_site": [d.motif for d in DOMAINS if d.site == label],
                "prot_domain": [d.consensus for d in DOMAINS if d.name == label],
            }[task]
            likeness[task].append(max(alike(part, text) for text in texts if len(text) == len(part)))
        if task == "prot_domain":
            due[name].update(*(domain.keywords for domain in DOMAINS if domain.name == label))
        if task == "prot_keyword":
            keywords[name].add(label)
    assert all(0.9 < sum(values) / len(values) < 0.99 for values in likeness.values()) and len(likeness) == 3
    assert keywords == {name: due[name] for name in keywords}


def test_a_type_of_a_gene_tells_what_lies_there_and_not_its_place(demo: Path) -> None:
    genomes = read_fasta(demo / "genomes.fasta")
    elements = dict(ELEMENTS)
    first: dict[str, str] = {}
    likeness: dict[str, list[float]] = defaultdict(list)
    for seqid, _, kind, start, end, *_ in read_features(demo):
        if kind in elements:
            likeness[kind].append(alike(genomes[seqid][int(start) - 1 : int(end)], elements[kind]))
        if kind not in ("region", "gene"):
            first.setdefault(seqid, kind)
    assert all(0.95 < sum(values) / len(values) < 0.99 for values in likeness.values()) and len(likeness) == 3
    counts = Counter(first.values())
    assert all(counts[kind] > 30 for kind in ("CDS", *elements)) and counts.total() == 200


def test_an_order_shows_in_what_joins_its_genes_and_domains(demo: Path) -> None:
    genomes, proteins = read_fasta(demo / "genomes.fasta"), read_fasta(demo / "proteins.fasta")
    first = {name: int(start) for name, task, start, *_ in reversed(read_labels(demo)) if task == "prot_domain"}
    orders = {order.name: order for order in ORDERS}
    seen: dict[str, list[float]] = defaultdict(list)
    for name, task, _, _, label in read_labels(demo):
        if task == "gene_taxonomy" and "N" not in genomes[name]:
            seen[task].append(alike(genomes[name][:9], orders[label].repeat))
        if task == "prot_taxonomy":
            linker = proteins[name][1 : first[name]]
            seen[task].append(sum(letter in orders[label].linker for letter in linker) / len(linker))
    assert {task: len(values) > 180 and sum(values) / len(values) > 0.8 for task, values in seen.items()} == {
        "gene_taxonomy": True,
        "prot_taxonomy": True,
    }


def test_a_coding_sequence_has_the_codons_that_its_order_prefers(demo: Path) -> None:
    orders = {order.name: order for order in ORDERS}
    order_of = {name: orders[label] for name, task, _, _, label in read_labels(demo) if task == "gene_taxonomy"}
    genomes = read_fasta(demo / "genomes.fasta")
    third: dict[str, Counter[str]] = defaultdict(Counter)
    for seqid, _, kind, start, end, _, strand, *_ in read_features(demo):
        if kind == "CDS" and seqid in order_of:
            bases = genomes[seqid][int(start) - 1 : int(end)].upper()
            if strand == "-":
                bases = bases[::-1].translate(str.maketrans("ACGT", "TGCA"))
            third[order_of[seqid].name].update(bases[2::3])
            assert strand == order_of[seqid].strand
    assert {name: counts.most_common(1)[0][0] for name, counts in third.items()} == {
        order.name: order.wobble[0] for order in ORDERS
    }


def test_a_few_sequences_are_unlabelled(demo: Path) -> None:
    labelled: dict[str, set[str]] = defaultdict(set)
    for name, task, _, _, _ in read_labels(demo):
        labelled[task].add(name)
    assert len(labelled["gene_taxonomy"]) == 200 - 5
    assert len(labelled["prot_taxonomy"]) == 600 - 15
    assert len(labelled["prot_keyword"]) == 600 - 15
    assert all(len(labelled[task]) == 600 for task in SPAN_TASKS)


@pytest.mark.parametrize("task", EXPECTED)
def test_no_class_dominates(demo: Path, task: str) -> None:
    classes, limit = EXPECTED[task]
    counts = weights_of_classes(demo)[task]
    total = 585 if task == "prot_keyword" else counts.total()
    assert len(counts) == classes
    assert max(counts.values()) / total < limit
    assert min(counts.values()) / total > 0.1


def test_the_command_writes_the_files(demo: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "workflow_scripts" / "make_demo_data.py"
    command = [sys.executable, str(script), "--out", str(tmp_path)]
    subprocess.run(command, check=True, cwd=script.parents[1], env={**os.environ, "PYTHONPATH": str(script.parents[1])})
    assert all((tmp_path / name).read_bytes() == (demo / name).read_bytes() for name in FILES)
