"""Small FASTA files with their annotations, and settings over them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lucavirus.config import Settings
from lucavirus.config_load import load_settings

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

G = {"name": "g", "kind": "gene", "files": ["genes.fasta"], "annotations": ["genes.gff3", "labels.tsv"]}
P = {"name": "p", "kind": "prot", "files": ["proteins.fasta.gz"], "annotations": ["labels.tsv"]}

Case = Callable[..., Settings]


def annotated(tmp_path: Path, files: dict[str, str] | None = None, sources: Any = None, **more: Any) -> Settings:
    """Settings over files in tmp_path: genes.fasta with a GFF3, proteins.fasta.gz, labels.tsv for both."""
    texts = {"genes.fasta": GENES, "proteins.fasta.gz": PROTEINS, "genes.gff3": GFF3, "labels.tsv": TSV}
    for name, text in {**texts, **(files or {})}.items():
        data = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    chosen = [
        {key: [str(tmp_path / file) for file in value] if key in ("files", "annotations") else value
         for key, value in source.items()}
        for source in sources or [G, P]
    ]  # fmt: skip
    if "vocabularies" in more:
        more["vocabularies"] = {task: str(tmp_path / file) for task, file in more["vocabularies"].items()}
    return load_settings({"project": "x", "sources": chosen, "runs": {"full": {}}, **more})
