# From data sets and trained models to figures, tables and pages; what is marked report() is shown by `snakemake --report`.
#   needs: results/<project>/datasets/*.tsv, results/<project>/runs/{run}/ (metrics.jsonl, training.json, evaluation.json)
#   makes: results/<project>/report/ (settings and data), results/<project>/runs/{run}/report/


localrules:
    show_settings,
    draw_data,
    draw_run,


rule show_settings:
    """Put the complete settings into the report."""
    output:
        report(
            "results/<project>/report/settings.json",
            caption="../report/settings.rst",
            category="Settings",
            labels={"subject": "all settings"},
        ),
    log:
        "results/<project>/logs/report/settings.log",
    conda:
        "../environment.yml"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        settings=settings_file,
        identity=settings_digest,
    shell:
        "cp {params.settings} {output} 2> {log}"


rule draw_data:
    """Draw the lengths and list the counts of the data sets."""
    input:
        lengths=rules.split.output.lengths,
        summary=rules.split.output.summary,
    output:
        lengths=report(
            "results/<project>/report/lengths.svg",
            caption="../report/lengths.rst",
            category="Data",
            labels={"subject": "lengths of the sequences"},
        ),
        table=report(
            "results/<project>/report/data.html",
            caption="../report/data.rst",
            category="Data",
            labels={"subject": "counts of molecules and splits"},
        ),
    log:
        "results/<project>/logs/report/data.log",
    conda:
        "../environment.yml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        folder=subpath(output.lengths, parent=True),
        identity=lambda wildcards: OF_DATASETS,
    shell:
        "exec python workflow_scripts/launch.py --log {log} python workflow_scripts/report_data.py"
        " --lengths {input.lengths}"
        " --summary {input.summary}"
        " --out {params.folder}"


rule draw_run:
    """Draw the curves, the metrics and the speed of a run, and write its page."""
    input:
        metrics=rules.train.output.metrics,
        training=rules.train.output.training,
        evaluation=rules.evaluate.output.metrics,
        summary=rules.split.output.summary,
    output:
        page="results/<project>/runs/{run}/report/summary.md",
        values="results/<project>/runs/{run}/report/tasks.tsv",
        tasks=report(
            "results/<project>/runs/{run}/report/tasks.svg",
            caption="../report/tasks.rst",
            category="Results",
            labels={"run": "{run}", "subject": "main metric of each task"},
        ),
        table=report(
            "results/<project>/runs/{run}/report/tasks.html",
            caption="../report/metrics.rst",
            category="Results",
            labels={"run": "{run}", "subject": "all metrics"},
        ),
        curves=report(
            "results/<project>/runs/{run}/report/curves.svg",
            caption="../report/curves.rst",
            category="Training",
            labels={"run": "{run}", "subject": "losses and learning rate"},
        ),
        speed=report(
            "results/<project>/runs/{run}/report/speed.svg",
            caption="../report/speed.rst",
            category="Training",
            labels={"run": "{run}", "subject": "speed"},
        ),
    log:
        "results/<project>/logs/report/run_{run}.log",
    conda:
        "../environment.yml"
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        folder=subpath(output.page, parent=True),
    shell:
        "exec python workflow_scripts/launch.py --log {log} python workflow_scripts/report.py"
        " --run-name {wildcards.run}"
        " --metrics {input.metrics}"
        " --training {input.training}"
        " --evaluation {input.evaluation}"
        " --summary {input.summary}"
        " --out {params.folder}"


for run in SETTINGS.runs:

    rule:
        name:
            f"report_{run}"
        input:
            rules.show_settings.output,
            rules.draw_data.output,
            all_of(run, rules.train, rules.evaluate, rules.draw_run),

    document(f"report_{run}", f"Report on the run {run} and its data.")


rule report:
    """Report on the data and on the report_runs of the configuration."""
    input:
        rules.show_settings.output,
        rules.draw_data.output,
        all_of(SETTINGS.report_runs, rules.train, rules.evaluate, rules.draw_run),
