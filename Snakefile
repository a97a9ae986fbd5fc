# LucaVirus: from sequences to an evaluated model. `snakemake --list` tells the targets, README.md the story.

from snakemake.utils import min_version

min_version("9.11")


configfile: "config/config.yaml"


report: "report/workflow.rst"


include: "rules/settings.smk"
include: "rules/common.smk"
include: "rules/identity.smk"
include: "rules/lock.smk"


pathvars:
    project=SETTINGS.project,


wildcard_constraints:
    source=alternatives(SOURCES),
    run=alternatives(SETTINGS.runs),


# In the order the data flow.
include: "rules/shards.smk"
include: "rules/split.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


rule all:
    """Train and evaluate every run of the configuration and write the report (what plain `snakemake` does)."""
    default_target: True
    input:
        all_of(SETTINGS.runs, rules.train, rules.evaluate),
        rules.report.input,


onstart:
    refuse_second_starts()
    write_settings()
