"""What a run is trained and measured on."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeInt, PositiveFloat, PositiveInt, Tag

from looplm.config.schema.base import Fraction, NonNegativeFloat, Section
from looplm.config.schema.task import AnyTask


class Records(Section):
    """Examples of one length with their answers, in files: the records of HRM, TRM, URM and EqR; see docs/reasoners.md.

    Every example is a row of its own, and comes with the id of its puzzle.
    """

    kind: Literal["records"] = "records"
    folder: str
    """Holds `train/` and `test/`; `looplm data grids` makes such folders, and so do the authors' programs."""
    part: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "train"
    """Folder within it: `train`, or `test` for what is held out."""


def _form(value: Any) -> str:
    """Marks in angle brackets, which no key has; `load` leaves them out of what it says."""
    if isinstance(value, Mapping | Section):
        return "<task>"
    return "<sources>" if isinstance(value, list | tuple) else "<folder>"


def _constant_or_staged(value: Any) -> str:
    return "<staged>" if isinstance(value, Mapping) else "<constant>"


Examples = Annotated[AnyTask | Records, Field(discriminator="kind")]
FolderOrTask = Annotated[
    Annotated[str, Tag("<folder>")] | Annotated[Examples, Tag("<task>")],
    Discriminator(_form),
]


class Source(Section):
    """One of several datasets that are mixed."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Names its counters, and seeds its order: another name is another order."""
    data: FolderOrTask
    """Folder or address of a token dataset, records, or a task."""
    weight: Annotated[
        Annotated[NonNegativeFloat, Tag("<constant>")]
        | Annotated[dict[NonNegativeInt, NonNegativeFloat], Tag("<staged>")],
        Discriminator(_constant_or_staged),
    ] = 1.0
    """Share of the examples, in proportion to the other weights; {step: weight} for one that changes, 0 before the
    first entry. Where a rewind has passed batches over, its steps count them."""
    max_epochs: PositiveFloat | None = None
    """Read it at most so often; its share then goes to the others. None: as often as the weight asks for."""

    def weight_at(self, step: int) -> float:
        if isinstance(self.weight, float):
            return self.weight
        begun = [begin for begin in self.weight if begin <= step]
        return self.weight[max(begun)] if begun else 0.0

    @property
    def place(self) -> Any:
        """The field that says where its files lie, as pydantic excludes it; None where there are none."""
        if isinstance(self.data, str):
            return {"data"}
        return {"data": {"folder"}} if isinstance(self.data, Records) else None

    @property
    def changes(self) -> set[int]:
        """The steps at which the weight may change."""
        return {0} if isinstance(self.weight, float) else {0, *self.weight}


class Masking(Section):
    """Tokens to be found again from those on both sides (arXiv 1810.04805): of every window some places are chosen, in
    spans of up to `longest` tokens, p(n) ~ 1/n (arXiv 1909.11942), never across documents; the loss is of those alone.

    What is chosen depends on the seed, the step and the row; of held-out data on the number of the window.
    """

    mask_token: NonNegativeInt
    """Id of the token that hides others. One above those of the data leaves all of them as they are."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Of the places of a window that are chosen; at least one is."""
    longest: PositiveInt = 3
    """Tokens of the longest span; 1: every token for itself."""
    masked_share: Fraction = 0.8
    """Of the chosen places: those that show the mask."""
    random_share: Fraction = 0.1
    """Of the chosen places: those that show any token of the data. The rest show what was there."""
    never: tuple[NonNegativeInt, ...] = ()
    """Ids that are never chosen, as of what opens or ends a document."""


class Data(Section):
    """What a run reads, how windows are cut from it and how many make a step."""

    train: Annotated[
        Annotated[str, Tag("<folder>")]
        | Annotated[Examples, Tag("<task>")]
        | Annotated[tuple[Source, ...], Tag("<sources>")],
        Discriminator(_form),
    ]
    """Folder of the token dataset to train on (made by `looplm data build`), or its address (s3://, gs://, http://);
    records; a synthetic task; or several sources with weights."""
    validation: FolderOrTask | None = None
    """Folder or address of the held-out token dataset, records, or a task."""
    sequence_length: PositiveInt
    """Tokens a window (S)."""
    batch_tokens: PositiveInt
    """Tokens of the global batch of one optimizer step; a multiple of sequence_length."""
    accumulation_steps: PositiveInt = 1
    """Micro-batches that make up one optimizer step."""
    packing: Literal["split", "best_fit"] = "split"
    """`split`: windows are cut from the stream of tokens, so nothing is padded. `best_fit`: documents are cut only
    where they are longer than a window; computed once and kept in `cache_dir`. Training only."""
    order: Literal["shuffled", "streams"] = "shuffled"
    """Of the windows of a dataset. `shuffled`: another order every epoch. `streams`: row b of a step goes on where row
    b of the step before ended; each of the B rows reads a B-th of the dataset, again and again, and the fewer than B
    windows that are left over are not read."""
    masking: Masking | None = None
    """Hide tokens, which are to be found again by a model that sees both sides (`model.attention_mask=full`), with any
    objective; None: the next token is to be predicted. Of token datasets."""
    prefetch_batches: NonNegativeInt = 4
    """Batches read ahead by the loader's threads."""
    cache_dir: str | None = None
    """Folder for copies of remote data and for packings; None for the user's cache (~/.cache/looplm)."""
    cache_gb: NonNegativeFloat = 100.0
    """Tokens of a remote dataset are kept there if all of them fit into so many gigabytes; else every window is fetched
    when it is needed."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """What is mixed; a single dataset is a mixture of one."""
        return self.train if isinstance(self.train, tuple) else (Source(name="train", data=self.train),)

    def read_before(self, step: int) -> dict[str, Any]:
        """What decides which examples the first `step` steps read, by source: equal means the same examples of the same
        datasets.

        A source that had no weight is left out, and so is what its weight is from `step` on. Where a dataset lies is
        nothing to it: what it holds, its manifest says.
        """
        if not isinstance(self.train, tuple):
            return {}
        starts = sorted({begin for source in self.train for begin in source.changes if begin < step})
        weights = {source.name: {start: source.weight_at(start) for start in starts} for source in self.train}
        return {
            source.name: source.model_dump(mode="json", exclude=source.place) | {"weight": weights[source.name]}
            for source in sorted(self.train, key=lambda source: source.name)
            if any(weights[source.name].values())
        }
