# From shards to data sets.
#   needs: results/<project>/shards/{source}/
#   makes: results/<project>/datasets/{gene,prot}/{train,dev,test}.h5 (rows, no tokens), summary.tsv, lengths.tsv


rule split:
    """Divide the sequences into train, dev and test sets, with a table of counts."""
    input:
        shards=rules.tokenize.input.shards,
        # Not to be missed where shards could not be made of a changed one.
        given=[rules.vocabularies.input.files, rules.vocabularies.input.given],
    output:
        expand("results/<project>/datasets/{molecule}/{split}.h5", molecule=MOLECULES, split=SPLITS),
        summary="results/<project>/datasets/summary.tsv",
        lengths="results/<project>/datasets/lengths.tsv",
    log:
        "results/<project>/logs/split.log",
    benchmark:
        "results/<project>/benchmarks/split.tsv"
    conda:
        "../environment.yml"
    threads: CPU_THREADS
    resources:
        mem_mb=16000,
        runtime=240,
    params:
        shards=lambda wildcards, input: os.path.dirname(os.path.dirname(input.shards[0])),
        folder=subpath(output.summary, parent=True),
        settings=settings_file,
        identity=lambda wildcards: OF_DATASETS,
    shell:
        "exec python workflow_scripts/launch.py --log {log} torchrun --standalone --nproc-per-node {threads}"
        " workflow_scripts/split.py"
        " --settings {params.settings}"
        " --shards {params.shards}"
        " --out {params.folder}"
