"""What a user types, as dry runs: targets, profiles, configurations, and what a change runs again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.conftest import Snakemake, jobs

RUNS = ("full", "mask_only", "gene_only", "prot_only", "single")
DATA = {"demo_data": 1, "vocabularies": 1, "tokenize_source": 2, "split": 1}


def commands(run: subprocess.CompletedProcess[str], script: str) -> list[str]:
    """Shell commands of the jobs that call a script."""
    assert run.returncode == 0, run.stderr
    return [line for line in re.findall(r"Shell command: (.*)", run.stdout) if script in line]


def said(run: subprocess.CompletedProcess[str]) -> str:
    """All that Snakemake said: a dry run writes its messages to standard output, a real one to standard error."""
    return run.stdout + run.stderr


def resources(run: subprocess.CompletedProcess[str], rule: str) -> dict[str, str]:
    """Resources of the first job of a rule."""
    block = run.stdout.split(f"rule {rule}:")[1].split("resources: ")[1].splitlines()[0]
    return dict(pair.split("=", 1) for pair in block.split(", "))


# -- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
def test_train_and_evaluate_work_as_typed(snakemake: Snakemake, run: str) -> None:
    found = jobs(snakemake("-n", f"train_{run}", f"evaluate_{run}"))
    assert found == {**DATA, "train": 1, "evaluate": 1, f"train_{run}": 1, f"evaluate_{run}": 1}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("tokenize", {"demo_data": 1, "vocabularies": 1, "tokenize_source": 2, "tokenize": 1}),
        ("split", DATA),
    ],
)
def test_data_targets(snakemake: Snakemake, target: str, expected: dict[str, int]) -> None:
    assert jobs(snakemake("-n", target)) == expected


def test_report_targets(snakemake: Snakemake) -> None:
    found = jobs(snakemake("-n", "report", "report_gene_only"))
    assert (found["train"], found["evaluate"], found["report"], found["report_gene_only"]) == (2, 2, 1, 1)


def test_without_a_target_everything_is_made(snakemake: Snakemake) -> None:
    found = jobs(snakemake("-n"))
    assert (found["train"], found["evaluate"], found["all"]) == (5, 5, 1)


def test_every_target_is_documented(snakemake: Snakemake) -> None:
    listed = dict(re.findall(r"^(\w+)(?: \((.*)\))?$", snakemake("--list").stdout, re.MULTILINE))
    wanted = {f"{stage}_{run}" for stage in ("train", "evaluate", "report") for run in RUNS}
    assert wanted | {"all", "tokenize", "split", "resume", "report"} <= set(listed)
    assert [name for name, sentence in listed.items() if len(sentence.split()) < 3] == []
    assert listed["train_gene_only"] == "Train the run gene_only: gene, 3 tasks."


def test_a_run_of_ones_own_brings_its_targets(snakemake: Snakemake, tree: Path) -> None:
    (tree / "mine.yaml").write_text("runs:\n  mine:\n    molecules: [gene]\n    tasks: [gene_mask]\n    seed: 3\n")
    found = snakemake("-n", "evaluate_mine", "--configfile", "mine.yaml")
    assert jobs(found)["train"] == 1
    assert "--run-name mine" in commands(found, "train.py")[0]
    inputs = found.stdout.split("rule train:")[1].split("input: ")[1].splitlines()[0]
    assert "datasets/gene/train.h5" in inputs
    assert "datasets/prot" not in inputs


def test_the_launch_line(snakemake: Snakemake) -> None:
    (line,) = commands(snakemake("-n", "train_full", "--cores", "2"), "train.py")
    (settings,) = re.findall(r"results/demo/settings/[0-9a-f]{16}\.json", line)
    assert line == (
        "exec python workflow_scripts/launch.py --log results/demo/logs/train/full.log --guard work/demo/full"
        f" torchrun --standalone --nproc-per-node 1 workflow_scripts/train.py --settings {settings}"
        " --run-name full --data results/demo --work work/demo/full --out results/demo/runs/full"
    )


def test_a_dry_run_writes_nothing(snakemake: Snakemake, tree: Path) -> None:
    lock = tree / ".snakemake/locks/0.output.lock"  # maybe of one that works, on another node
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text("results/demo")
    (tree / ".snakemake/alive.lock").unlink(missing_ok=True)
    assert snakemake("-n", "train_full").returncode == 0
    assert not (tree / "results").exists()
    assert not (tree / "work").exists()
    assert lock.exists() and not (tree / ".snakemake/alive.lock").exists()
    lock.unlink()


# -- ranks and GPUs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "settings", "ranks"),
    [
        ("", {"gpus": 8}, "1"),
        ("", {"gpus": 8, "cpu_ranks": 2}, "2"),
        ("0,1,2,3", {"gpus": 8}, "4"),
        ("0,1,2,3", {"gpus": 2}, "2"),
        ("0,1,2,3", {"gpus": 8, "device": "cpu"}, "1"),
        ("-1", {"gpus": 8}, "1"),
    ],
)
def test_ranks_are_the_gpus_of_the_job_or_cpu_ranks(
    snakemake: Snakemake, gpus: str, settings: dict[str, object], ranks: str
) -> None:
    run = snakemake("-n", "evaluate_full", "--config", f"training={json.dumps(settings)}", gpus=gpus)
    for script in ("train.py", "evaluate.py"):
        assert f"--nproc-per-node {ranks} workflow_scripts/{script}" in commands(run, script)[0]


def test_tokenize_and_split_have_a_rank_a_core(snakemake: Snakemake) -> None:
    run = snakemake("-n", "split", "--cores", "3")
    assert "--nproc-per-node 3 " in commands(run, "split.py")[0]
    assert "--nproc-per-node 3 " in commands(run, "tokenize_source.py")[0]


# -- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", 'model={"hiden_size": 3}'], "model.hiden_size (--config): is not a setting"),
        (["--config", 'model={"num_attention_heads": 5}'], "num_attention_heads (5) must divide hidden_size (64)"),
        (["--config", "run=ful"], "run names ful, which is not in runs"),
        (["--configfile", "config/example_viruses.yaml"], "(config/example_viruses.yaml:10): no such file: my_data/"),
    ],
)
@pytest.mark.parametrize("dry", [["-n"], []], ids=["dry", "real"])
def test_a_bad_configuration_ends_in_one_message(
    snakemake: Snakemake, tree: Path, words: list[str], message: str, dry: list[str]
) -> None:
    run = snakemake(*dry, "train_full", *words)
    assert run.returncode == 1
    assert message in said(run)
    assert said(run).count("mistake") == 1
    assert "Traceback" not in said(run)
    assert 'File "' not in said(run)
    assert not (tree / "results").exists()


def test_the_slurm_profile_says_which_data_are_missing(snakemake: Snakemake) -> None:
    run = snakemake("--profile", "slurm", "-n", "train_full")
    assert run.returncode == 1
    assert "the configuration has 10 mistakes" in said(run)
    assert "sources.0.files (config/openvirus.yaml:10): no such file: data/openvirus/train/*.csv*" in said(run)


@pytest.fixture
def openvirus(tree: Path) -> None:
    names = [f"{split}/part_0.csv.gz" for split in ("train", "dev", "test")]
    tasks = ("gene_type", "prot_homo", "prot_site", "prot_domain", "gene_taxonomy", "prot_taxonomy", "prot_keyword")
    for name in [*names, *(f"labels/{task}.txt" for task in tasks)]:
        file = tree / "data/openvirus" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.mark.usefixtures("openvirus")
def test_a_number_of_jobs_is_no_cluster(snakemake: Snakemake) -> None:
    for words in (("-j", "2"), ("-c", "2")):
        dry = snakemake("-n", *words, "train_full", "--config", 'training={"gpus": 8, "cpu_ranks": 2}')
        assert "--nproc-per-node 2 workflow_scripts/train.py" in commands(dry, "train.py")[0]


@pytest.mark.usefixtures("openvirus")
def test_the_slurm_profile_asks_for_the_gpus_of_the_recipe(snakemake: Snakemake) -> None:
    wide = 'training={"gpus": 16, "nodes": 2}'
    for run, words, nodes, gpus, tasks, cpus in [
        ("full", [], "1", "8", "8", "9"),
        ("full", ["--config", wide], "2", "8", "8", "9"),
        # with mpi the plugin wants at least two tasks a node
        ("single", [], "1", "1", "2", "5"),
    ]:
        dry = snakemake("--profile", "slurm", "-n", f"train_{run}", *words)
        (line,) = commands(dry, "train.py")
        assert (
            f"srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --cpus-per-task={int(tasks) * int(cpus)}"
            in line
        )
        assert f"torchrun --nproc-per-node {gpus} workflow_scripts/train.py" in line
        asked = resources(dry, "train")
        assert (asked["nodes"], asked["gres"]) == (nodes, f"gpu:{gpus}")
        assert (asked["tasks_per_node"], asked["cpus_per_task"], asked["mpi"]) == (tasks, cpus, "srun")
        assert (asked["slurm_partition"], asked["runtime"], asked["mem_mb"]) == ("gpu", "1440", "256000")
        assert "gpu" not in asked and "--signal=USR1@" in asked["slurm_extra"]
    assert resources(dry, "tokenize_source")["slurm_partition"] == "cpu"


@pytest.mark.usefixtures("openvirus")
def test_the_slurm_profile_may_name_the_gpu_model(snakemake: Snakemake) -> None:
    given = ("--default-resources", "nodes=1", "slurm_partition=cpu", "gpu_type=h100")
    dry = snakemake("--profile", "slurm", "-n", "evaluate_full", *given)
    assert [resources(dry, rule)["gres"] for rule in ("train", "evaluate")] == ["gpu:h100:8"] * 2
    assert "gres" not in resources(dry, "tokenize_source")


@pytest.mark.usefixtures("openvirus")
def test_the_slurm_profile_may_give_a_job_fewer_gpus_than_the_recipe(snakemake: Snakemake) -> None:
    for gres, ranks in (("gpu:4", 4), ("gpu:h100:2", 2), ("gpu", 1)):
        fewer = ("--set-resources", f"train:gres='{gres}'", f"evaluate:gres='{gres}'")
        dry = snakemake("--profile", "slurm", "-n", "evaluate_full", *fewer)
        for script in ("train.py", "evaluate.py"):
            (line,) = commands(dry, script)
            assert f"--nproc-per-node {ranks} workflow_scripts/{script}" in line


@pytest.mark.usefixtures("openvirus")
def test_the_workstation_profile_takes_the_gpus_there_are(snakemake: Snakemake) -> None:
    dry = snakemake("--profile", "profiles/workstation", "-n", "train_full", gpus="0,1")
    (line,) = commands(dry, "train.py")
    assert "--nproc-per-node 2 workflow_scripts/train.py" in line
    assert "--guard work/openvirus/full --gpus 2 torchrun --standalone" in line


# -- resume ----------------------------------------------------------------------------------------------------------


def test_resume_wants_a_run(snakemake: Snakemake) -> None:
    run = snakemake("-n", "resume")
    assert run.returncode == 1
    assert "snakemake resume --config run=NAME (one of full, mask_only," in said(run)


def test_resume_wants_a_checkpoint(snakemake: Snakemake, tree: Path) -> None:
    run = snakemake("-n", "resume", "--config", "run=single")
    assert run.returncode == 1
    assert "run single has no checkpoint in work/demo/single/checkpoints: nothing to resume" in said(run)
    assert "the same command with train_single in the place of resume" in said(run)


def test_the_checkpoint_that_is_named_must_be_there(snakemake: Snakemake, tree: Path) -> None:
    folder = tree / "work/demo/prot_only/checkpoints"
    for step in (400, 800):
        (folder / f"step-{step}").mkdir(parents=True)
    for target in ("resume", "train_prot_only", "evaluate_prot_only"):  # the others would delete results first
        run = snakemake("-n", target, "--config", "run=prot_only", "trained_checkpoint=500")
        assert run.returncode == 1
        assert "cannot go back to step 500: there is none of that step" in said(run)
        assert "trained_checkpoint must be one of the steps that are there: 400, 800" in said(run)
    assert snakemake("-n", "resume", "--config", "run=prot_only", "trained_checkpoint=400").returncode == 0
    assert snakemake("-n", "train_full", "--config", "run=prot_only", "trained_checkpoint=500").returncode == 0
    words = ("run=prot_only", "trained_checkpoint=500", "model_dirpath=config")
    assert snakemake("-n", "train_prot_only", "--config", *words).returncode == 0
    state = folder / "step-800/state.json"
    state.write_text('{"run": {"original": null}}')
    try:
        run = snakemake("-n", "train_prot_only", "--config", *words)
        assert run.returncode == 1 and "the run has checkpoints, and did not begin with these weights" in said(run)
    finally:
        state.unlink()


@pytest.mark.parametrize("which", ["", "/last"])
def test_a_run_may_begin_with_the_model_of_another_one_which_is_trained_first(snakemake: Snakemake, which: str) -> None:
    begins = f'runs={{"second": {{"model_dirpath": "results/demo/runs/gene_only/model{which}"}}}}'
    found = snakemake("-n", "train_second", "--config", begins)
    assert jobs(found)["train"] == 2
    assert [re.findall(r"--run-name (\w+)", line)[0] for line in commands(found, "train.py")] == ["gene_only", "second"]


def test_resume_continues_the_run(snakemake: Snakemake, tree: Path) -> None:
    checkpoint = tree / "work/demo/gene_only/checkpoints/step-400"
    checkpoint.mkdir(parents=True)
    try:
        found = snakemake("-n", "resume", "--config", "run=gene_only")
        assert jobs(found) == {**DATA, "train": 1, "resume": 1}
        assert "--run-name gene_only" in commands(found, "train.py")[0]
    finally:
        shutil.rmtree(tree / "work")


# -- quality ---------------------------------------------------------------------------------------------------------


def test_lint_finds_nothing(snakemake: Snakemake) -> None:
    run = snakemake("--lint")
    assert run.returncode == 0, run.stderr


def test_snakefmt_finds_nothing(root: Path) -> None:
    command = [Path(sys.executable).parent / "snakefmt", "--check", "Snakefile", "rules"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_snakefile_is_short(root: Path) -> None:
    assert len((root / "Snakefile").read_text().splitlines()) <= 50


def test_settings_that_cannot_be_written_are_told(snakemake: Snakemake, tree: Path) -> None:
    (tree / "results/demo/settings.json").mkdir(parents=True)
    run = snakemake("tokenize")
    assert run.returncode == 1 and "Traceback" not in said(run)
    assert "settings.json" in said(run) and "cannot be written (Is a directory)" in said(run)
    assert "What to do: work in a clone of your own" in said(run)
