# What decides a stage's result. No rule is here.

import hashlib
import json

from lucavirus.config import OPERATIONAL

# When the text changes, Snakemake runs the stage again; one text, because Snakemake compares params without their names.
# It holds what decides the stages before, because Snakemake records a stage's params when it has failed too: then only the
# later ones still tell of the change.


def identity(*before: str, **settings) -> str:
    """The settings as one line of JSON, with a digest of the identities of the stages before."""
    digest = hashlib.sha256("\n".join(before).encode()).hexdigest()[:16] if before else None
    return json.dumps({**settings, "before": digest}, sort_keys=True)


# The files, in their order, and the names that the user maps.
OF_VOCABULARIES = identity(
    sources=[source.model_dump(include={"name", "files", "kind", "annotations"}) for source in SETTINGS.sources],
    vocabularies=SETTINGS.vocabularies,
    gff3_types=SETTINGS.gff3_types,
)
OF_SHARDS = {
    name: identity(
        OF_VOCABULARIES, source=source.model_dump(exclude={"split"}), tokenize=SETTINGS.tokenize.model_dump()
    )
    for name, source in SOURCES.items()
}
OF_DATASETS = identity(
    *OF_SHARDS.values(),
    sources=[(source.name, source.split) for source in SETTINGS.sources],
    split=SETTINGS.split.model_dump(),
)


def train_identity(wildcards) -> str:
    """What decides the model of one run: its settings without those that only say how it is carried out."""
    back_to = SETTINGS.trained_checkpoint if SETTINGS.run == wildcards.run else None
    settings = SETTINGS.runs[wildcards.run].model_dump(mode="json", exclude=set(OPERATIONAL))
    return identity(OF_DATASETS, **settings, **({"trained_checkpoint": back_to} if back_to else {}))
