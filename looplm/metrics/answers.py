"""What a reasoner answers after every segment: `eval/answers-<step>.json`, written by `looplm eval`, for the report."""

from typing import Self

from pydantic import model_validator

from looplm.metrics.stored import Measured, Stored

KIND = "answers"


class Grid(Stored):
    """A puzzle and what is answered after some of the segments, cell by cell, row after row."""

    columns: int
    given: list[int]
    """Tokens of the puzzle."""
    wanted: list[int]
    """Labels; -100 where none is scored."""
    segments: list[int]
    guesses: list[list[int]]
    """For each of `segments` the likeliest token of every cell."""

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.segments) != len(self.guesses):
            raise ValueError(f"guesses has {len(self.guesses)} lists for {len(self.segments)} segments")
        if any(len(one) != len(self.given) for one in (self.wanted, *self.guesses)):
            raise ValueError("given, wanted and guesses differ in length")
        return self


class Attempts(Stored):
    """Tasks of ARC, of which every question gets so many attempts by votes over augmentations."""

    count: int
    num_tasks: int
    solved: float
    """Share of the tasks; one with several questions counts in part."""


class Answers(Measured):
    """Examples of a task as a reasoner goes on from segment to segment; the lists run over segments 1, 2, ..."""

    segment_loops: int
    """Loops of every segment."""
    halted: list[float]
    """Share of the examples of which the gate has said by then that they may halt."""
    right: list[float | None]
    """Of those, the share whose answer was right when the gate first said so; None where there are none."""
    solved: list[float]
    """Share of the examples whose answer after the segment is right."""
    grids: list[Grid]
    attempts: Attempts | None = None
    """None of data that are no tasks of ARC, or have no answers to their questions."""

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if not len(self.halted) == len(self.right) == len(self.solved):
            raise ValueError("halted, right and solved differ in length")
        return self
