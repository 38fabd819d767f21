"""Synthetic tasks whose answers are computed: data without files, to measure what depth is good for.

An example is a function of (the task's fields, its number). Other seeds are other examples, so a task with another seed
is held-out data; where few examples exist (short sums, small grids), the same one may be in both.
"""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from looplm.config.schema.base import Fraction, Section


class Task(Section):
    """What tasks have in common."""

    seed: NonNegativeInt = 0
    """Of the examples; another seed is other examples."""
    num_examples: PositiveInt = 1_000_000
    """Examples of an epoch."""


class PHop(Task):
    """The token after my previous occurrence, p times; asked at every position (arXiv 2402.09268)."""

    kind: Literal["p_hop"] = "p_hop"
    hops: PositiveInt = 4
    """How many occurrences back the answer is (p)."""
    length: PositiveInt = 64
    """Letters of an example."""
    alphabet: PositiveInt = 4
    """Different letters."""


class Addition(Task):
    """a+b=c with leading zeros, `digits` digits an operand; asked for c."""

    kind: Literal["addition"] = "addition"
    digits: PositiveInt = 4
    """Digits of an operand."""
    operands: Annotated[int, Field(ge=2)] = 2
    """Numbers that are added."""
    reverse: bool = False
    """Numbers are written with the ones first, as they are added."""


class Modular(Task):
    """Expressions of +, - and * in prefix notation, modulo `modulus`; asked for the value (Mano, arXiv 2510.25741)."""

    kind: Literal["modular"] = "modular"
    operations: PositiveInt = 10
    """The most operations; an example has 1 to that many, each number alike."""
    modulus: Annotated[int, Field(ge=2)] = 23
    """Numbers are 0 to this, without it."""


class Facts(Section):
    """Facts (head, relation, tail), and two of them composed; asked for the tail (arXiv 2604.07822, task A).

    Trained are all facts alone, and compositions of facts of the larger part.
    """

    kind: Literal["facts"] = "facts"
    seed: NonNegativeInt = 0
    """Of the facts: the same for training and held-out data."""
    entities: PositiveInt = 2000
    """Things that facts are about."""
    relations: PositiveInt = 200
    """Kinds of facts."""
    out_degree: PositiveInt = 20
    """Facts of every head, with as many different relations."""
    held_out_fraction: Fraction = 0.05
    """Share of facts that are never composed in training."""
    composed_per_fact: PositiveFloat = 7.2
    """Compositions trained for every fact of the larger part."""
    part: Literal["train", "unseen", "systematic"] = "train"
    """`unseen`: compositions of the larger part that are not trained. `systematic`: compositions of held-out facts."""
    max_examples: PositiveInt = 3000
    """Of the held-out parts."""


class Chains(Section):
    """Relations that permute the entities, followed one after another; asked for the end (arXiv 2604.07822, task B)."""

    kind: Literal["chains"] = "chains"
    seed: NonNegativeInt = 0
    """Of the relations: the same for training and held-out data."""
    entities: PositiveInt = 200
    """Things that a relation permutes."""
    relations: PositiveInt = 10
    """Permutations."""
    min_hops: PositiveInt = 1
    """The fewest relations of a query."""
    max_hops: PositiveInt = 8
    """Every number of hops from min_hops to max_hops has as many examples; one hop is a fact."""
    train_queries: PositiveInt = 15_000
    """Trained queries of every number of hops, where there are so many."""
    held_out_queries: PositiveInt = 750
    """Of every number of hops; all facts are trained, and never held out."""
    part: Literal["train", "unseen"] = "train"
    """`unseen`: queries that are not trained."""


class Graphs(Task):
    """Facts "every A is a B", drawn as a graph, and the question whether X is a Y or a Z; asked for the steps from X to
    Y and the answer, or for what is left of them when the first are thought in latents (ProsQA, arXiv 2412.06769).

    Tokens are 0 for the end of a fact or step, 1 before the question, 2 and 4 around the latents, 3 for a latent, 5
    before the answer, then the things, which get other names in every example.
    """

    LATENT: ClassVar[int] = 3
    kind: Literal["graphs"] = "graphs"
    things: Annotated[int, Field(ge=4)] = 23
    """Things of an example, X included."""
    max_facts: PositiveInt = 45
    """The most facts of an example."""
    min_path: PositiveInt = 3
    """Least steps from X to Y."""
    max_path: PositiveInt = 6
    """Most steps from X to Y."""
    stage: NonNegativeInt = 0
    """So many of the first steps are left out; from `max_path` on, all are."""
    latents_per_step: NonNegativeInt = 1
    """Latents in place of every step that is left out; 0: nothing stands there."""
    pad_latents: bool = False
    """Examples with fewer steps than `stage` have as many latents as the others."""

    def latents_of(self, steps: int) -> int:
        """Latents of an example of so many steps."""
        return self.latents_per_step * (self.stage if self.pad_latents else min(self.stage, steps))

    @property
    def most_latents(self) -> int:
        return self.latents_of(self.max_path)


class Sudoku(Task):
    """Puzzles with one solution; asked for the empty cells.

    A million examples are `num_puzzles` puzzles, with digits, rows, columns, bands and stacks exchanged and transposed
    at random, which keeps the solution unique.
    """

    kind: Literal["sudoku"] = "sudoku"
    size: Literal[4, 6, 9] = 4
    """Cells a row; blocks of 2x2, 2x3 or 3x3."""
    num_puzzles: PositiveInt = 1000
    """Puzzles that are made and then varied."""
    clues: PositiveInt | None = None
    """Clues that are left; None to take out all that can go (the hardest that random puzzles get)."""
    in_place: bool = False
    """The answer is asked where its cell is, for full attention; else the solved grid follows the puzzle."""


class Maze(Task):
    """Mazes without loops, so one path leads from S to G; asked which cells it goes through."""

    kind: Literal["maze"] = "maze"
    size: Annotated[int, Field(ge=5)] = 9
    """Cells a row, walls included."""
    min_path: PositiveInt = 6
    """Least steps from S to G."""
    max_path: PositiveInt = 40
    """Steps from S to G."""
    in_place: bool = False
    """As for Sudoku."""


_Tasks = PHop | Addition | Modular | Facts | Chains | Graphs | Sudoku | Maze
AnyTask = Annotated[_Tasks, Field(discriminator="kind")]
TASK_KINDS = tuple(str(task.model_fields["kind"].default) for task in get_args(_Tasks))
