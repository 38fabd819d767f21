"""The typed description of a run: what is trained, on what, how and where.

Frozen pydantic models; every field has its meaning and unit under it. Choices that carry fields of their own
(injection, objective, depth, ...) are unions told apart by `kind`. Nothing here imports jax, so a wrong config fails
in milliseconds. Checks that involve several sections are in `config.check`.
"""

from looplm.config.schema.base import Fraction as Fraction
from looplm.config.schema.base import NonNegativeFloat as NonNegativeFloat
from looplm.config.schema.base import Section as Section
from looplm.config.schema.data import Data as Data
from looplm.config.schema.data import Source as Source
from looplm.config.schema.loop import Depth as Depth
from looplm.config.schema.loop import FixedDepth as FixedDepth
from looplm.config.schema.loop import LogNormalPoissonDepth as LogNormalPoissonDepth
from looplm.config.schema.loop import Loop as Loop
from looplm.config.schema.loop import PoissonDepth as PoissonDepth
from looplm.config.schema.loop import ScheduledDepth as ScheduledDepth
from looplm.config.schema.loop import UniformDepth as UniformDepth
from looplm.config.schema.model import Model as Model
from looplm.config.schema.model import Place as Place
from looplm.config.schema.moe import Balance as Balance
from looplm.config.schema.moe import DenseAttention as DenseAttention
from looplm.config.schema.moe import FeedForward as FeedForward
from looplm.config.schema.moe import MixtureAttention as MixtureAttention
from looplm.config.schema.moe import MoE as MoE
from looplm.config.schema.objective import ExpectedCrossEntropy as ExpectedCrossEntropy
from looplm.config.schema.objective import FinalCrossEntropy as FinalCrossEntropy
from looplm.config.schema.objective import GateImprovement as GateImprovement
from looplm.config.schema.objective import Objective as Objective
from looplm.config.schema.objective import WeightedCrossEntropy as WeightedCrossEntropy
from looplm.config.schema.optim import AdamW as AdamW
from looplm.config.schema.optim import Guard as Guard
from looplm.config.schema.optim import Muon as Muon
from looplm.config.schema.optim import Optim as Optim
from looplm.config.schema.optim import Optimizer as Optimizer
from looplm.config.schema.optim import Schedule as Schedule
from looplm.config.schema.parts import GELU as GELU
from looplm.config.schema.parts import AddInjection as AddInjection
from looplm.config.schema.parts import ConcatInjection as ConcatInjection
from looplm.config.schema.parts import DepthScaledInit as DepthScaledInit
from looplm.config.schema.parts import DiagonalInjection as DiagonalInjection
from looplm.config.schema.parts import EmbeddingState as EmbeddingState
from looplm.config.schema.parts import ExitGate as ExitGate
from looplm.config.schema.parts import Init as Init
from looplm.config.schema.parts import Injection as Injection
from looplm.config.schema.parts import InputState as InputState
from looplm.config.schema.parts import LinearScaling as LinearScaling
from looplm.config.schema.parts import NoInjection as NoInjection
from looplm.config.schema.parts import NormalInit as NormalInit
from looplm.config.schema.parts import NormalState as NormalState
from looplm.config.schema.parts import NoScaling as NoScaling
from looplm.config.schema.parts import OrthogonalInit as OrthogonalInit
from looplm.config.schema.parts import RampScaling as RampScaling
from looplm.config.schema.parts import ReadOut as ReadOut
from looplm.config.schema.parts import Rope as Rope
from looplm.config.schema.parts import SquaredReLU as SquaredReLU
from looplm.config.schema.parts import StateInit as StateInit
from looplm.config.schema.parts import SwiGLU as SwiGLU
from looplm.config.schema.parts import ValueEmbedding as ValueEmbedding
from looplm.config.schema.parts import ZeroOutputInit as ZeroOutputInit
from looplm.config.schema.parts import ZeroState as ZeroState
from looplm.config.schema.run import Checkpoint as Checkpoint
from looplm.config.schema.run import Eval as Eval
from looplm.config.schema.run import Log as Log
from looplm.config.schema.run import Mesh as Mesh
from looplm.config.schema.run import Recipe as Recipe
from looplm.config.schema.run import Run as Run
from looplm.config.schema.run import Sharding as Sharding
from looplm.config.schema.task import TASK_KINDS as TASK_KINDS
from looplm.config.schema.task import Addition as Addition
from looplm.config.schema.task import AnyTask as AnyTask
from looplm.config.schema.task import Chains as Chains
from looplm.config.schema.task import Facts as Facts
from looplm.config.schema.task import Maze as Maze
from looplm.config.schema.task import Modular as Modular
from looplm.config.schema.task import PHop as PHop
from looplm.config.schema.task import Sudoku as Sudoku
