"""Settings of the data: sources, tokenizing, splitting; and what all groups of settings have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from lucavirus.tasks import Molecule

HeldOut = Literal["dev", "test"]
HELD_OUT: tuple[HeldOut, ...] = ("dev", "test")
SPLITS: tuple[str, ...] = ("train", *HELD_OUT)

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]


def setting(default: Any, description: str, **rules: Any) -> Any:
    """A setting with its default and the sentence that documents it; `rules` are pydantic's."""
    return Field(default, description=description, **rules)


def _is_csv(name: str) -> bool:
    return name.removesuffix("*").removesuffix(".gz").endswith(".csv")


class Frozen(BaseModel):
    """A group of settings: immutable, and a key it does not know is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _no_switch_for_a_number(cls, given: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        """Pydantic takes true for 1, and YAML reads `yes` and `on` as true."""
        value = validate(given)
        if isinstance(given, bool) and isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError("must be a number")
        return value

    def contradictions(self) -> Iterator[str]:
        """What is wrong with settings that are each right by themselves."""
        return iter(())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # A line each: config_load tells them one by one.
        if problems := list(self.contradictions()):
            raise ValueError("\n".join(problems))
        return self


class Source(Frozen):
    """One named set of input files."""

    name: Name = Field(description="a name of your own: letters, digits, _; the folder of its shards")
    files: tuple[str, ...] = Field(
        min_length=1,
        description="FASTA or OpenVirus CSV, plain or .gz (all of one format); * and ? are expanded, in sorted order",
    )
    kind: Molecule | None = setting(None, "gene or prot: what a FASTA holds (a CSV says it in each row)")
    annotations: tuple[str, ...] = setting((), "GFF3 (.gff, .gff3) or TSV files with labels for a FASTA, plain or .gz")
    window_size: PositiveInt | None = setting(
        None,
        "bases: longer sequences are cut into windows of this size; null keeps them whole (a run cuts on the right)",
    )
    window_overlap: NonNegativeInt = setting(0, "bases that neighbouring windows share")
    split: Literal["auto", "train", "dev", "test"] = setting(
        "auto", "auto: by the hash of each sequence; train, dev, test: all of this source goes there"
    )

    @property
    def is_csv(self) -> bool:
        """True for OpenVirus CSV, False for FASTA, by the file name."""
        return _is_csv(self.files[0])

    def contradictions(self) -> Iterator[str]:
        """Settings that do not go together."""
        if len({_is_csv(name) for name in self.files}) > 1:
            yield "one source cannot have both FASTA and CSV files; make two sources"
        if not self.is_csv and self.kind is None:
            yield "a FASTA source needs `kind: gene` or `kind: prot`"
        if self.is_csv and self.kind is not None:
            yield "a CSV says the kind of each row itself; remove `kind`"
        if self.is_csv and self.annotations:
            yield "the labels of a CSV are in the CSV; remove `annotations`"
        if self.window_size is not None and self.window_overlap >= self.window_size:
            yield "window_overlap must be smaller than window_size"
        if self.window_size is None and self.window_overlap:
            yield "window_overlap goes only with window_size"


class Split(Frozen):
    """How sequences of sources with `split: auto` are divided."""

    dev: NonNegativeFloat = setting(0.1, "dev set, per molecule: a fraction (below 1) or a number of whole sequences")
    test: NonNegativeFloat = setting(0.1, "test set, likewise")

    def contradictions(self) -> Iterator[str]:
        """Settings that do not go together."""
        if (self.dev < 1) != (self.test < 1) and self.dev and self.test:
            yield "dev and test must both be fractions or both be numbers of sequences"
        if self.dev + self.test >= 1 and self.dev < 1 and self.test < 1:
            yield "dev + test leave nothing to train on"
        for size in (self.dev, self.test):
            if size >= 1 and size != int(size):
                yield f"{size:g} is neither a fraction below 1 nor a number of sequences"


class Tokenize(Frozen):
    """How input becomes shards."""

    unit_mb: PositiveInt = setting(
        64,
        "MB of input in a unit of work, at most (small files share); a change tokenizes anew, into the same sequences",
    )
