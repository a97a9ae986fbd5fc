# Helpers of the rules, named by what they return. No rule is here.

import os
import sys
from pathlib import Path

from snakemake.settings.types import ExecMode

from lucavirus.claims import visible_gpus
from lucavirus.config_data import SPLITS
from lucavirus.continuing import changed_settings, refusal, require_begun_with, require_step
from lucavirus.errors import UserError
from lucavirus.guard import only_owner, only_start, stage_lock
from lucavirus.launch import GRACE_SECONDS
from lucavirus.slurm import queue, trainings
from lucavirus.tasks import MOLECULES, SUPERVISED


def look_first_in(folder: str) -> None:
    """Have the rules find programs in a folder before those of the user's PATH."""
    os.environ.update(PATH=os.pathsep.join([folder, os.environ.get("PATH", os.defpath)]))


# The rules' `python` is the one that runs Snakemake, whether or not its environment is activated.
look_first_in(os.path.dirname(sys.executable))

# Threads of a job that has no GPU to feed; Snakemake scales them down to the cores there are.
CPU_THREADS = 8
SOURCES = {source.name: source for source in SETTINGS.sources}


def refuse_second_starts() -> None:
    """An error where a stage is about to start that is going on, or a training that Slurm has a job for.

    The launcher asks too, but then Snakemake has cleared away the log of the one that is going on.
    """
    needed = list(workflow.dag.needrun_jobs())
    runs = sorted(job.wildcards.run for job in needed if job.rule.name == "train")
    works = [work for run in runs if (work := Path("work", SETTINGS.project, run)).is_dir()]
    logs = [log for job in needed for log in map(Path, job.log) if stage_lock(log).exists()]
    try:
        found, slurm_answers = (queue() if runs or logs else ""), True
    except UserError as error:  # the jobs themselves look again
        logger.warning(f"Slurm does not say which trainings it has: {error}")
        found, slurm_answers = "", False
    busy = {run: jobs for run in runs if (jobs := trainings(found, run, Path.cwd()))}
    if busy:
        raise ConfigurationError(
            "\n".join(f"run {run} is trained by {', '.join(map(str, jobs))}" for run, jobs in busy.items())
            + "\n  What to do: wait until it has left the queue (squeue --me), then type the same command "
            "again; or end it first: where it is RUNNING, `scancel --signal=USR1` and its number saves it and puts it back "
            "into the queue; where it is PENDING, `scancel` and its number takes it out there. Its log: train.log in the "
            "work folder of the run"
        )
    look = {"patience": GRACE_SECONDS, "ask_slurm": slurm_answers, "look": True}
    try:
        for lock in [only_owner(work, **look) for work in works] + [only_start(log, **look) for log in logs]:
            with lock:
                pass
    except UserError as error:
        raise ConfigurationError(str(error)) from None
    except KeyboardInterrupt:
        raise ConfigurationError("interrupted while another start held a lock") from None


def alternatives(names) -> str:
    """A wildcard constraint: one of the names."""
    return "|".join(names)


def source_files(*names) -> list[str]:
    """Input files of the named sources, labels included, each once."""
    return list(dict.fromkeys(file for name in names for file in (*SOURCES[name].files, *SOURCES[name].annotations)))


def refuse_changed(run) -> None:
    """An error, before any job starts, where a run is not what it was trained as so far."""
    work = Path("work", SETTINGS.project, run)
    changed = changed_settings(work, SETTINGS.runs[run].meaning())
    if changed and SETTINGS.restart != run:
        raise ConfigurationError(str(refusal(run, work, changed)))


def refuse_other_beginning(run) -> None:
    """An error, before Snakemake deletes results, where a run cannot go on from the step that is named.

    That is where it has no folder of that step, or has not begun with those weights of the original's.
    """
    step, folder = SETTINGS.trained_checkpoint, SETTINGS.model_dirpath
    if SETTINGS.run != run or not step:
        return
    work = Path("work", SETTINGS.project, run)
    try:
        if folder is None:
            require_step(work, step)
        elif SETTINGS.restart != run:
            require_begun_with(work, folder, step)
    except UserError as error:
        raise ConfigurationError(str(error)) from None


def datasets(wildcards) -> list[str]:
    """The data sets that a run reads, which must be the one that it was."""
    refuse_changed(wildcards.run)
    refuse_other_beginning(wildcards.run)
    molecules = SETTINGS.runs[wildcards.run].molecules
    return expand("results/<project>/datasets/{molecule}/{split}.h5", molecule=molecules, split=SPLITS)


def weights_to_begin_with(wildcards) -> list[str]:
    """The model of another run of this project, best or last, that a run begins with: it has to be trained first.

    Not `ancient`, though a run that has begun goes on whatever becomes of them: when the other run is trained in the
    same start, Snakemake would not look for other reasons to train this one.
    """
    folder = SETTINGS.runs[wildcards.run].model_dirpath
    others = [f"results/{SETTINGS.project}/runs/{run}/model" for run in SETTINGS.runs if run != wildcards.run]
    return [model for model in others if folder in (model, f"{model}/last")]


def results_folder(wildcards) -> str:
    """The folder of all results of the project."""
    return f"results/{SETTINGS.project}"


def work_folder(wildcards) -> str:
    """A run's checkpoints and history: kept by Snakemake whatever happens, because no rule declares them."""
    return f"work/{SETTINGS.project}/{wildcards.run}"


# Where a job runs. None of this may trigger a rerun: params that take `resources` or `threads` are not recorded.


def gpus_here() -> int:
    """How many GPUs this machine offers: those of CUDA_VISIBLE_DEVICES when it is set, else all."""
    return len(visible_gpus(os.environ))


def default_resource(name: str):
    """What the profile gives to every rule under this name, as it is written there; None without."""
    given = workflow.resource_settings.default_resources or {}
    # Not its value: Snakemake takes a word for an expression, which it evaluates in rules only.
    return str(given[name].raw).strip("'\"") if name in given else None


def on_slurm() -> bool:
    """True where jobs go to Slurm: profiles/slurm says how many nodes a job takes, in dry runs too."""
    return default_resource("nodes") is not None


if on_slurm():
    look_first_in(f"{workflow.basedir}/profiles/slurm/bin")

# In a job that the workflow has submitted the launcher may give the job back to the queue; in a user's own it must not.
if on_slurm() and workflow.exec_mode == ExecMode.REMOTE:
    os.environ.update(LUCAVIRUS_OWN_JOB="1")


def gpus_asked(wildcards) -> int:
    """GPUs a job of the run asks for on its node: the recipe's on a cluster, at most what is there on this machine."""
    run = SETTINGS.runs[wildcards.run]
    if run.device == "cpu":
        return 0
    if on_slurm():
        return run.gpus // run.nodes
    cluster = workflow.non_local_exec or workflow.exec_mode == ExecMode.REMOTE
    return run.gpus if cluster else min(run.gpus, gpus_here())


def threads_asked(wildcards) -> int:
    """Threads of a job of the run on its node: a training process and its data loaders for each GPU."""
    gpus = gpus_asked(wildcards)
    return gpus * (1 + SETTINGS.runs[wildcards.run].worker_num) if gpus else CPU_THREADS


# Slurm's plugin gives `gpu` to sbatch as a number over all nodes, which Slurm may spread unevenly: there, GPUs are asked
# for as `gres`, a number on each node. A resource that is None is none.


def gpus_of_machine(wildcards):
    """GPUs that a job of the run takes of this machine, or of another scheduler than Slurm."""
    return None if on_slurm() else gpus_asked(wildcards)


def gpus_of_node(wildcards):
    """GPUs that a job of the run takes of each node, with the model that the profile wants: gpu:h100:8."""
    words = ["gpu", default_resource("gpu_type"), gpus_asked(wildcards)]
    return ":".join(str(word) for word in words if word) if on_slurm() and gpus_asked(wildcards) else None


def gpus_of_gres(gres) -> int:
    """The number in gpu:h100:8; a profile may ask for another one than the run."""
    number = str(gres or 0).rsplit(":", 1)[-1]
    return int(number) if number.isdigit() else 1


# With `mpi` a rule runs in the job itself, where its own srun starts a step on all nodes. Without, it runs in a step on
# one node, in which no srun reaches the others and only the first process gets the signals: Snakemake.


def mpi_of_training(wildcards):
    """On Slurm, the start of a training's own steps."""
    return "srun" if on_slurm() else None


def nodes_of_training(wildcards) -> int:
    """Nodes of a training."""
    return SETTINGS.runs[wildcards.run].nodes if on_slurm() else 1


def tasks_of_training(wildcards):
    """Tasks that sbatch reserves on each node of a training; with `mpi` the plugin wants at least 2."""
    run = SETTINGS.runs[wildcards.run]
    return max(2, gpus_asked(wildcards) or run.cpu_ranks) if on_slurm() else None


def cpus_of_task(wildcards) -> int:
    """CPUs of each such task, so that together they are the training's."""
    return -(-threads_asked(wildcards) // (tasks_of_training(wildcards) or 1))


def ranks(wildcards, resources) -> int:
    """Processes on a node: one a GPU of the job, without GPU as the run says."""
    gpus = gpus_of_gres(resources.get("gres")) if on_slurm() else resources.get("gpu", 0)
    return gpus or SETTINGS.runs[wildcards.run].cpu_ranks


def gpus_held(wildcards, resources) -> str:
    """The launcher's word to take free GPUs of this machine; without a scheduler nobody else shares them out."""
    gpus = resources.get("gpu", 0)
    return f" --gpus {gpus}" if gpus and not workflow.exec_mode == ExecMode.REMOTE else ""


def training_start(wildcards, resources) -> str:
    """How a training's processes are started: by torchrun, on Slurm one a node.

    After the first node has ended the others get a minute to end too: with all saved, none has anything left to do.
    """
    if not on_slurm():
        return f"torchrun --standalone --nproc-per-node {ranks(wildcards, resources)}"
    cpus = resources.tasks_per_node * resources.cpus_per_task
    return (
        f"srun --nodes={resources.nodes} --ntasks={resources.nodes} --ntasks-per-node=1 --cpus-per-task={cpus}"
        f" --cpu-bind=none --export=ALL --wait=60 --unbuffered torchrun --nproc-per-node {ranks(wildcards, resources)}"
    )


# Targets.


def all_of(runs, *stages) -> list[str]:
    """What the stages make of each run, and all data: a target asks for everything that it stands for.

    A file that is missing between the input and what is asked for Snakemake does not miss: a stage that has failed, or
    whose result was deleted, is then not started again.
    """
    outputs = [file for stage in stages for file in stage.output]
    return [*rules.tokenize.input, *rules.split.output, *expand(outputs, run=runs)]


def document(rule_name: str, text: str) -> None:
    """Give a rule made in a loop the sentence that `snakemake --list` shows."""
    workflow.get_rule(rule_name).docstring = text


def run_summary(run: str) -> str:
    """A run in a few words: `gene + prot, 9 tasks`."""
    tasks = SETTINGS.runs[run].tasks
    return f"{' + '.join(SETTINGS.runs[run].molecules)}, {len(tasks)} task{'s' if len(tasks) > 1 else ''}"


def resumed_training(wildcards) -> list[str]:
    """The results of the run that `resume` continues; an error where there is none to continue."""
    run, runs = SETTINGS.run, ", ".join(SETTINGS.runs)
    if run is None:
        raise ConfigurationError(f"which run? Say it like this: snakemake resume --config run=NAME (one of {runs})")
    checkpoints = Path("work", SETTINGS.project, run, "checkpoints")
    if SETTINGS.model_dirpath is None and not any(checkpoints.glob("step-*")):
        raise ConfigurationError(
            f"run {run} has no checkpoint in {checkpoints}: nothing to resume. Start it: the same command with "
            f"train_{run} in the place of resume"
        )
    return all_of(run, rules.train)
