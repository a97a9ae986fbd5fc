"""The data sets of sources made by hand: which rows are in which, and what they are known by."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lucavirus.alphabet import encode
from lucavirus.config import Settings
from lucavirus.dataset import FORMAT, VERSION, Dataset, classes_of, require_samples
from lucavirus.distributed import Ranks
from lucavirus.errors import UserError
from lucavirus.shards import Shard, map_arrays
from lucavirus.splits import make_datasets
from lucavirus.tasks import SUPERVISED
from lucavirus.tokenization import tokenize_source
from lucavirus.vocabularies import build_vocabularies

ALONE = Ranks(0, 1, torch.device("cpu"))


def divided(tmp_path: Path, settings: Settings) -> str:
    """Make shards and data sets of all sources; returns what the stage says."""
    build_vocabularies(settings, tmp_path / "vocabularies")
    for source in settings.sources:
        tokenize_source(settings, source.name, tmp_path / "vocabularies", tmp_path / "shards" / source.name, ALONE)
    return make_datasets(settings, tmp_path / "shards", tmp_path / "datasets", ALONE)


def test_a_data_set_is_known_by_what_it_holds(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    genes, proteins = write("g.fa", ">g\nACGTACGT\n"), write("p.fa", ">p\nMKVLAW\n")

    def fingerprints(gene_label: str, keyword: str, unit_mb: int = 64) -> tuple[str, str]:
        labels = write("l.tsv", f"seq_id\ttask\tlabel\ng\tgene_taxonomy\t{gene_label}\np\tprot_keyword\t{keyword}\n")
        names = {task: write(f"{task}.txt", "A\nB\n") for task in SUPERVISED}
        settings = Settings.model_validate({
            "project": "p", "runs": {"full": {}}, "vocabularies": names, "tokenize": {"unit_mb": unit_mb},
            "split": {"dev": 0, "test": 0},
            "sources": [{"name": "g", "files": [genes], "kind": "gene", "annotations": [labels]},
                        {"name": "p", "files": [proteins], "kind": "prot", "annotations": [labels]}],
        })  # fmt: skip
        divided(tmp_path, settings)
        gene, prot = (map_arrays(tmp_path / f"datasets/{m}/train.h5", FORMAT, VERSION)[1] for m in ("gene", "prot"))
        return gene["fingerprint"], prot["fingerprint"]

    gene, prot = fingerprints("A", "A")
    assert fingerprints("A", "A", unit_mb=1) == (gene, prot)
    other_gene, same_prot = fingerprints("B", "A")
    assert other_gene != gene and same_prot == prot
    same_gene, other_prot = fingerprints("A", "B")
    assert same_gene == gene and other_prot != prot


def test_shards_with_class_ids_of_other_vocabularies_are_not_put_together(
    tmp_path: Path, write: Callable[[str, str], str]
) -> None:
    fastas = {name: write(f"{name}.fa", f">{name}\nMKVLAW\n") for name in "ab"}
    sources = [{"name": name, "files": [file], "kind": "prot"} for name, file in fastas.items()]
    for name, labels in (("a", "A\nB\n"), ("b", "B\nA\n")):
        names = {task: write(f"{task}.txt", labels) for task in SUPERVISED}
        settings = Settings.model_validate(
            {"project": "p", "runs": {"full": {}}, "vocabularies": names, "sources": sources}
        )
        build_vocabularies(settings, tmp_path / "vocabularies")
        tokenize_source(settings, name, tmp_path / "vocabularies", tmp_path / "shards" / name, ALONE)
    with pytest.raises(UserError, match="of other label vocabularies than those of a/00000-000.h5"):
        make_datasets(settings, tmp_path / "shards", tmp_path / "datasets", ALONE)


def test_data_sets_by_hand(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    files = {
        "train": write("train.fa", ">a\nMKVLAW\n>b\nMKVL\n"),
        "dev": write("dev.fa", f">c\nMKVLAW\n>d\nMK\n>e\n{'MKVLAWGQRS' * 4000}\n"),  # c is in train too
        "test": write("test.fa", ">f\nM\n"),
    }
    names = {task: write(f"{task}.txt", "A\nB\n") for task in SUPERVISED}
    sources = [{"name": split, "files": [file], "kind": "prot", "split": split} for split, file in files.items()]
    given = {"project": "p", "runs": {"full": {}}, "vocabularies": names, "sources": sources}
    settings, out = Settings.model_validate(given), tmp_path / "datasets"
    divided(tmp_path, settings)
    found = {}
    for split in files:
        arrays, attributes = map_arrays(out / f"prot/{split}.h5", FORMAT, VERSION)
        found[split] = (arrays["shard"].tolist(), arrays["row"].tolist(), arrays["length"].tolist())
        assert (attributes["molecule"], attributes["split"]) == ("prot", split)
        assert attributes["tokens"] == sum(found[split][2]) and attributes["sequences"] == len(found[split][0])
    assert found == {"train": ([0, 0], [0, 1], [6, 4]), "dev": ([1, 1], [1, 2], [2, 40_000]), "test": ([2], [0], [1])}
    table = pd.read_csv(out / "summary.tsv", sep="\t").set_index(["molecule", "split"])
    assert table.loc["prot"].to_dict("list") == {
        "sequences": [2, 2, 1], "whole_sequences": [2, 2, 1], "tokens": [10, 40_002, 1], "dropped": [0, 1, 0],
        "min_length": [4, 2, 1],
        "median_length": [5, 20_001, 1], "mean_length": [5, 20_001, 1], "max_length": [6, 40_000, 1],
    }  # fmt: skip
    assert not table.loc["gene"].to_numpy().any()
    lengths = pd.read_csv(out / "lengths.tsv", sep="\t")
    sums = lengths.groupby(["molecule", "split"])["sequences"].sum()["prot"].to_dict()
    assert sums == {"dev": 2, "test": 1, "train": 2}
    assert (lengths["from"].min(), lengths["to"].max()) == (1, 40_001) and len(set(lengths["from"])) == 40


def test_samples_by_hand(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    labels = write(
        "l.tsv",
        "seq_id\ttask\tstart\tend\tlabel\ng1\tgene_type\t1\t2\tB\ng1\tgene_taxonomy\t\t\tB\n"
        "p1\tprot_keyword\t\t\tB\np1\tprot_keyword\t\t\tA\n",
    )
    files = {
        "gg": write("gg.fa", ">g0\nACGT\n>g1\nTGCATGCA\n"),
        "g": write("g.fa", ">h0\nGGA\n"),
        "p": write("p.fa", ">p0\nMKVLAWGQ\n>p1\nMK\n"),
        "d": write("d.fa", ">d0\nMRV\n"),
    }
    settings = Settings.model_validate({
        "project": "p", "runs": {"full": {}},
        "vocabularies": {task: write(f"{task}.txt", "A\nB\n") for task in SUPERVISED},
        "sources": [{"name": name, "files": [file], "kind": "gene" if name in ("gg", "g") else "prot",
                     "annotations": [labels] if name in ("gg", "p") else [], "split": "dev" if name == "d" else "train"}
                    for name, file in files.items()],
    })  # fmt: skip
    divided(tmp_path, settings)
    tasks = ("gene_mask", "gene_type", "prot_mask", "prot_site", "prot_keyword")
    data = Dataset(tmp_path, ("prot", "gene"), "train", 8, tasks)
    require_samples(data, "full")
    classes = {"gene_type": "AB", "prot_site": "", "prot_keyword": "ABC", "gene_taxonomy": "A"}
    assert classes_of(classes, tasks) == {"gene_type": 2, "prot_keyword": 3}
    order = np.array([4, 1, 3, 2, 0])
    read = [
        (s.index, s.molecule, s.tokens.tobytes(), {task: values.tolist() for task, values in s.labels.items()})
        for s in data.samples(order)
    ]
    assert read == [
        (4, 1, encode("prot", b"MK"), {"prot_keyword": [[1], [0]]}),
        (1, 0, encode("gene", b"TGCATG"), {"gene_type": [[1, 2, 1]]}),
        (3, 1, encode("prot", b"MKVLAW"), {}),
        (2, 0, encode("gene", b"GGA"), {}),
        (0, 0, encode("gene", b"ACGT"), {}),
    ]
    assert len(data) == 5 and data.lengths(order).tolist() == [4, 8, 8, 5, 6]
    assert [data.name(index) for index in order.tolist()] == ["p1", "g1", "p0", "h0", "g0"]
    assert len(set(data.fingerprint)) == 2
    assert [task for task in tasks if data.has_labels(task)] == ["gene_type", "prot_keyword"]
    assert [Shard(tmp_path / "shards/gg/00000-000.h5").has_labels(np.array([n]), "gene_type") for n in (0, 1)] == [0, 1]
    dev = Dataset(tmp_path, ("gene", "prot"), "dev", 8, tasks)  # without genes
    assert (len(dev), dev.name(0), dev.lengths(np.array([0])).tolist()) == (1, "d0", [5])
    assert not any(map(dev.has_labels, tasks))  # those of train are in the same shards' folder
    assert not Dataset(tmp_path, ("gene",), "train", 8, tasks).has_labels("prot_keyword")
    with pytest.raises(UserError, match="there are no training sequences for full"):
        require_samples(Dataset(tmp_path, ("gene",), "dev", 8, tasks), "full")


def test_labels_are_looked_for_in_the_rows_of_each_shard(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    labels = write("l.tsv", "seq_id\ttask\tstart\tend\tlabel\nb0\tgene_type\t0\t1\tB\n")
    files = {"a": write("a.fa", ">a0\nACGT\n>a1\nTGCA\n"), "b": write("b.fa", ">b0\nGGA\n")}
    settings = Settings.model_validate({
        "project": "p", "runs": {"full": {}},
        "sources": [{"name": name, "files": [file], "kind": "gene", "split": "train",
                     "annotations": [labels] if name == "b" else []} for name, file in files.items()],
    })  # fmt: skip
    divided(tmp_path, settings)
    assert Dataset(tmp_path, ("gene",), "train", 8, ("gene_type",)).has_labels("gene_type")


def test_as_many_files_may_be_open_as_the_system_allows(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        Dataset(tmp_path, (), "train", 8, ())
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("most", "shards"), [(1024, 256), (4096, 1024), (100, 256), (resource.RLIM_INFINITY, 2**14)])
def test_three_data_sets_share_the_files_that_may_be_open(
    tmp_path: Path, most: int, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, most))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    assert Dataset(tmp_path, (), "train", 8, ())._shard.cache_parameters()["maxsize"] == shards


def test_windows_of_a_genome_are_in_one_data_set(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    genomes = ["".join(body) for body in np.random.default_rng(0).choice(list("ACGT"), (40, 100))]
    files = {
        "g": write("g.fa", "".join(f">g{n}\n{body}\n" for n, body in enumerate(genomes))),
        "w": write("w.fa", f">w\n{genomes[0]}\n"),
    }  # the first one once more, cut in another way
    settings = Settings.model_validate({
        "project": "p", "runs": {"full": {}}, "split": {"dev": 0.3, "test": 0.3},
        "vocabularies": {task: write(f"{task}.txt", "A\n") for task in SUPERVISED},
        "sources": [{"name": name, "files": [files[name]], "kind": "gene", "window_size": size, "split": split}
                    for name, size, split in (("g", 10, "auto"), ("w", 15, "train"))],
    })  # fmt: skip
    divided(tmp_path, settings)
    whole = pd.read_csv(tmp_path / "datasets/summary.tsv", sep="\t").query("molecule == 'gene'")
    homes = list[set[int]]()
    for split in ("train", "dev", "test"):
        rows = map_arrays(tmp_path / f"datasets/gene/{split}.h5", FORMAT, VERSION)[0]
        # Ten windows a genome of the first source, in order; those of the second are of its first genome.
        homes.append({0 if shard else row // 10 for shard, row in zip(rows["shard"], rows["row"], strict=True)})
    train, dev, test = homes
    assert whole["whole_sequences"].tolist() == [len(home) for home in homes]
    assert min(map(len, homes)) > 3 and 0 in train and not (train & dev or train & test or dev & test)


def test_damaged_shards_are_not_divided(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    settings = Settings.model_validate({
        "project": "p", "runs": {"full": {}},
        "vocabularies": {task: write(f"{task}.txt", "A\n") for task in SUPERVISED},
        "sources": [{"name": "s", "files": [write("p.fa", ">a\nMKVLAW\n")], "kind": "prot"}],
    })  # fmt: skip
    build_vocabularies(settings, tmp_path / "vocabularies")
    tokenize_source(settings, "s", tmp_path / "vocabularies", tmp_path / "shards/s", ALONE)
    path = tmp_path / "shards/s/00000-000.h5"
    body = Shard(path).sequence(0).tobytes()
    content = path.read_bytes()
    assert content.count(body) == 1
    path.write_bytes(content.replace(body, body[::-1]))
    with pytest.raises(UserError, match="00000-000.h5"):
        make_datasets(settings, tmp_path / "shards", tmp_path / "datasets", ALONE)


def test_numbers_that_leave_nothing_to_train_on_are_refused(tmp_path: Path, write: Callable[[str, str], str]) -> None:
    file = write("p.fa", ">a\nMKVLAW\n>b\nMKVL\n>c\nMKVL\n")
    given: dict[str, Any] = {
        "project": "p", "runs": {"full": {}}, "sources": [{"name": "s", "files": [file], "kind": "prot"}],
        "vocabularies": {task: write(f"{task}.txt", "A\n") for task in SUPERVISED}, "split": {"dev": 1, "test": 1},
    }  # fmt: skip
    with pytest.raises(UserError) as caught:
        divided(tmp_path, Settings.model_validate(given))
    assert str(caught.value).startswith("split: dev and test ask for 1 + 1 sequences, and there are 2 of prot: none is")
    given["sources"][0]["split"] = "test"  # such a source is not divided
    divided(tmp_path, Settings.model_validate(given))
    given["sources"][0]["split"] = "auto"
    said = divided(tmp_path, Settings.model_validate(given | {"split": {"dev": 1, "test": 0}}))
    assert [line for line in said.splitlines() if "warning" in line] == ["warning: there is no prot in test"]
