"""LucaVirus: a genome and protein language model for viruses, trained by a Snakemake workflow."""

__version__ = "0.1.0"
