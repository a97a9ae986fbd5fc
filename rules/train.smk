# From data sets to a trained model.
#   needs: results/<project>/datasets/, results/<project>/shards/, results/<project>/vocabularies/
#   makes: results/<project>/runs/{run}/model/ (weights, settings, labels), metrics.jsonl, training.json
#   keeps: work/<project>/{run}/ (checkpoints, history), which no rule declares, so that Snakemake never deletes it


rule train:
    """Train one run; started again after a failure it goes on from its newest checkpoint."""
    input:
        vocabularies=rules.vocabularies.output,
        shards=rules.tokenize.input.shards,
        datasets=datasets,
        weights=weights_to_begin_with,
    output:
        model=directory("results/<project>/runs/{run}/model"),
        metrics="results/<project>/runs/{run}/metrics.jsonl",
        training="results/<project>/runs/{run}/training.json",
    log:
        "results/<project>/logs/train/{run}.log",
    benchmark:
        "results/<project>/benchmarks/train/{run}.tsv"
    conda:
        "../environment.yml"
    threads: threads_asked
    resources:
        gpu=gpus_of_machine,
        gres=gpus_of_node,
        nodes=nodes_of_training,
        mpi=mpi_of_training,
        tasks_per_node=tasks_of_training,
        tasks_per_gpu=0,
        cpus_per_task=cpus_of_task,
        mem_mb=16000,
        runtime=1440,
        # Warned 10 minutes before its time limit a training saves and goes back to the queue; its log goes on.
        slurm_extra="--signal=USR1@600 --open-mode=append",
    params:
        held=gpus_held,
        start=training_start,
        data=results_folder,
        work=work_folder,
        folder=subpath(output.training, parent=True),
        settings=settings_file,
        identity=train_identity,
    shell:
        "exec python workflow_scripts/launch.py --log {log} --guard {params.work}{params.held}"
        " {params.start}"
        " workflow_scripts/train.py"
        " --settings {params.settings}"
        " --run-name {wildcards.run}"
        " --data {params.data}"
        " --work {params.work}"
        " --out {params.folder}"


for run in SETTINGS.runs:

    rule:
        name:
            f"train_{run}"
        input:
            all_of(run, rules.train),

    document(f"train_{run}", f"Train the run {run}: {run_summary(run)}.")


rule resume:
    """Continue a run from its newest checkpoint: snakemake resume --config run=NAME"""
    input:
        resumed_training,
