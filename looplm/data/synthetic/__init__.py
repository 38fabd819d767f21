"""Tasks whose right answers are computed: examples without files, to measure what depth is good for.

task      what a task is; windows of its examples
draw      random numbers of an example, by arithmetic
grid      how puzzles on a grid become sequences
p_hop     follow "the token after my previous occurrence" p times
addition  add numbers
modular   value an expression modulo a number
facts     compose two facts
chains    follow relations, one after another
graphs    follow facts, in written steps or latents
sudoku    fill a grid
maze      find the way
"""

from collections.abc import Callable

from looplm.config import schema
from looplm.data.synthetic.addition import Addition
from looplm.data.synthetic.chains import Chains
from looplm.data.synthetic.facts import Facts
from looplm.data.synthetic.graphs import Graphs
from looplm.data.synthetic.maze import Maze
from looplm.data.synthetic.modular import Modular
from looplm.data.synthetic.p_hop import PHop
from looplm.data.synthetic.sudoku import Sudoku
from looplm.data.synthetic.task import Task
from looplm.data.synthetic.task import TaskWindows as TaskWindows

_MAKERS: dict[type, Callable[..., Task]] = {
    schema.Addition: Addition,
    schema.Modular: Modular,
    schema.Facts: Facts,
    schema.Chains: Chains,
    schema.Graphs: Graphs,
    schema.Sudoku: Sudoku,
    schema.Maze: Maze,
}


def build_task(config: object) -> Task:
    """Make the task of a config section. Raises UserError for sizes without a task."""
    if isinstance(config, schema.PHop):
        return PHop(config.hops, config.length, config.alphabet, config.num_examples, config.seed)
    return _MAKERS[type(config)](config)
