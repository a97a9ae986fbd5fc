# From data sets to a trained model.
#   needs: results/<project>/datasets/, results/<project>/shards/, results/<project>/vocabularies/
#   makes: results/<project>/runs/{run}/model/ (weights, settings, labels), metrics.jsonl, training.json
#   keeps: work/<project>/{run}/ (checkpoints, history), which no rule declares, so that Snakemake never deletes it


rule train:
    """Train one run; started again after a failure it goes on from its newest checkpoint."""
    input:
        vocabularies=rules.vocabularies.output,
        shards=rules.tokenize.input,
        datasets=lambda wildcards: datasets(wildcards.run),
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
        gpu=gpus_asked,
        cpus_per_task=threads_asked,
        mem_mb=16000,
        runtime=1440,
    params:
        ranks=ranks,
        data=results_folder,
        work=work_folder,
        folder=subpath(output.training, parent=True),
        settings=SETTINGS_FILE,
        identity=train_identity,
    shell:
        "exec python workflow_scripts/launch.py --log {log} --guard {params.work}"
        " torchrun --standalone --nproc-per-node {params.ranks}"
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
            multiext(f"results/<project>/runs/{run}/", "model", "metrics.jsonl", "training.json"),

    document(f"train_{run}", f"Train the run {run}: {run_summary(run)}.")


rule resume:
    """Continue a run from its newest checkpoint: snakemake resume --config run=NAME"""
    input:
        resumed_training,
