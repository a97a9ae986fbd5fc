# From a trained model to its metrics.
#   needs: results/<project>/runs/{run}/model/, results/<project>/datasets/
#   makes: results/<project>/runs/{run}/evaluation.json, evaluation.tsv


rule evaluate:
    """Measure the loss and metrics of each task on the dev and test sets, beside the best constant answer."""
    input:
        shards=rules.tokenize.input.shards,
        datasets=datasets,
        model=rules.train.output.model,
        training=rules.train.output.training,
    output:
        metrics="results/<project>/runs/{run}/evaluation.json",
        table="results/<project>/runs/{run}/evaluation.tsv",
    log:
        "results/<project>/logs/evaluate/{run}.log",
    benchmark:
        "results/<project>/benchmarks/evaluate/{run}.tsv"
    conda:
        "../environment.yml"
    threads: threads_asked
    resources:
        gpu=gpus_of_machine,
        gres=gpus_of_node,
        tasks_per_gpu=0,
        cpus_per_task=threads_asked,
        mem_mb=16000,
        runtime=240,
    params:
        held=gpus_held,
        ranks=ranks,
        data=results_folder,
        settings=settings_file,
        identity=train_identity,
    shell:
        "exec python workflow_scripts/launch.py --log {log}{params.held} torchrun --standalone --nproc-per-node {params.ranks}"
        " workflow_scripts/evaluate.py"
        " --settings {params.settings}"
        " --run-name {wildcards.run}"
        " --data {params.data}"
        " --model {input.model}"
        " --out {output.metrics}"


for run in SETTINGS.runs:

    rule:
        name:
            f"evaluate_{run}"
        input:
            all_of(run, rules.train, rules.evaluate),

    document(f"evaluate_{run}", f"Evaluate the run {run} on its dev and test sets.")
