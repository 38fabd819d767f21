"""`looplm data grids`: make folders of records, the data of recursive reasoners."""

from pathlib import Path
from typing import Annotated

import typer

from looplm.cli.output import console, messages

app = typer.Typer(no_args_is_help=True, help="Make puzzles on grids: folders of records (see docs/reasoners.md).")

Out = Annotated[Path, typer.Option(help="Folder of the new records.")]
Count = Annotated[int, typer.Option(min=1, help="Puzzles to learn from.")]
Test = Annotated[int, typer.Option("--test", min=1, help="Puzzles that are held out.")]
Seed = Annotated[int, typer.Option(min=0, help="The same options and seed make the same folder.")]
Augment = Annotated[int, typer.Option(min=0, help="Variants of every puzzle that is learnt from, beside itself.")]


@app.command("sudoku")
def grids_sudoku(
    out: Out,
    size: Annotated[int, typer.Option(help="4, 6 or 9.")] = 9,
    train: Count = 1000,
    test: Test = 1000,
    augment: Augment = 1000,
    clues: Annotated[
        int | None, typer.Option(min=0, help="Clues that are left; none that can go when left out.")
    ] = None,
    min_guesses: Annotated[int, typer.Option(min=0, help="Puzzles are rated by the digits that have to be tried.")] = 0,
    max_guesses: Annotated[int | None, typer.Option(min=0, help="No upper bound when left out.")] = None,
    seed: Seed = 0,
) -> None:
    """Sudokus with one solution, as hard as asked for; equivalent grids are in one part only."""
    from looplm.data.grids.sudoku import Options, make_sudoku

    options = Options(size, train, test, augment, clues, min_guesses, max_guesses, seed)
    make_sudoku(out, options, messages.print)
    console.print(f"wrote {out}")


@app.command("maze")
def grids_maze(
    out: Out,
    size: Annotated[int, typer.Option(min=5, help="Rows and columns, walls included.")] = 30,
    train: Count = 1000,
    test: Test = 1000,
    augment: Annotated[int, typer.Option(min=0, max=7, help="Ways to turn and mirror that are added.")] = 0,
    min_path: Annotated[int, typer.Option(min=1, help="Steps from S to G.")] = 100,
    max_path: Annotated[int, typer.Option(min=1, help="Steps from S to G.")] = 140,
    seed: Seed = 0,
) -> None:
    """Mazes with one path from S to G (Maze-Unique)."""
    from looplm.data.grids.maze import Options, make_mazes

    make_mazes(out, Options(size, train, test, augment, min_path, max_path, seed))
    console.print(f"wrote {out}")


@app.command("arc")
def grids_arc(
    out: Out,
    train: Annotated[list[Path], typer.Option(help="Files or folders of tasks; all of them is learnt.")],
    test: Annotated[list[Path], typer.Option(help="Of these, only the demonstrations; their questions are asked.")],
    augment: Augment = 1000,
    seed: Seed = 0,
) -> None:
    """The tasks of ARC, from its public JSON files."""
    from looplm.data.grids.arc import read_tasks
    from looplm.data.grids.tasks import write_tasks

    write_tasks(out, read_tasks(train), read_tasks(test), augment=augment, seed=seed, report=messages.print)
    console.print(f"wrote {out}")


@app.command("rules")
def grids_rules(
    out: Out,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks, of twelve rules in turn.")] = 240,
    demonstrations: Annotated[int, typer.Option(min=1, help="Examples of every task to learn from.")] = 3,
    questions: Annotated[int, typer.Option(min=1, help="Examples of every task that are held out.")] = 1,
    size: Annotated[int, typer.Option(min=4, max=30, help="Rows and columns.")] = 8,
    augment: Augment = 0,
    seed: Seed = 0,
) -> None:
    """Tasks like those of ARC that are made up, on small grids."""
    from looplm.data.grids.rules import make_tasks
    from looplm.data.grids.tasks import write_tasks

    made = make_tasks(tasks, demonstrations=demonstrations, questions=questions, size=size, seed=seed)
    write_tasks(out, {}, made, augment=augment, seed=seed, canvas=size, report=messages.print)
    console.print(f"wrote {out}")
