# From sequences and annotations to vocabularies and shards.
#   needs: the files of `sources` (the demo makes its own)
#   makes: results/<project>/vocabularies/{task}.txt, results/<project>/shards/{source}/


localrules:
    demo_data,


rule demo_data:
    """Make the demo's genomes, proteins and labels."""
    output:
        DEMO_FILES,
    log:
        "results/<project>/logs/demo_data.log",
    conda:
        "../environment.yml"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        folder=subpath(output[0], parent=True),
    shell:
        "exec python workflow_scripts/launch.py --log {log} python workflow_scripts/make_demo_data.py"
        " --out {params.folder}"
        " --seed 1111"


rule vocabularies:
    """List the class names of each task, over all sources."""
    input:
        files=source_files(*SOURCES),
        given=list(SETTINGS.vocabularies.values()),
    output:
        expand("results/<project>/vocabularies/{task}.txt", task=SUPERVISED),
    log:
        "results/<project>/logs/vocabularies.log",
    conda:
        "../environment.yml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        folder=subpath(output[0], parent=True),
        settings=settings_file,
        identity=lambda wildcards: OF_VOCABULARIES,
    shell:
        "exec python workflow_scripts/launch.py --log {log} python workflow_scripts/vocabularies.py"
        " --settings {params.settings}"
        " --out {params.folder}"


rule tokenize_source:
    """Tokenize one source into HDF5 shards; its index is written last and proves that they are complete."""
    input:
        files=lambda wildcards: source_files(wildcards.source),
        vocabularies=rules.vocabularies.output,
        given=rules.vocabularies.input.given,
    output:
        index="results/<project>/shards/{source}/index.json",
    log:
        "results/<project>/logs/tokenize/{source}.log",
    benchmark:
        "results/<project>/benchmarks/tokenize/{source}.tsv"
    conda:
        "../environment.yml"
    threads: CPU_THREADS
    resources:
        mem_mb=16000,
        runtime=720,
    params:
        vocabularies=lambda wildcards, input: os.path.dirname(input.vocabularies[0]),
        folder=subpath(output.index, parent=True),
        settings=settings_file,
        identity=lambda wildcards: OF_SHARDS[wildcards.source],
    shell:
        "exec python workflow_scripts/launch.py --log {log} torchrun --standalone --nproc-per-node {threads}"
        " workflow_scripts/tokenize_source.py"
        " --settings {params.settings}"
        " --source {wildcards.source}"
        " --vocabularies {params.vocabularies}"
        " --out {params.folder}"


rule tokenize:
    """Tokenize all sources."""
    input:
        vocabularies=rules.vocabularies.output,
        shards=expand("results/<project>/shards/{source}/index.json", source=SOURCES),
