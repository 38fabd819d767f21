"""Everything that decides what a training run computes."""

from typing import Literal

from pydantic import JsonValue, NonNegativeInt, PositiveFloat, PositiveInt

from looplm.config.schema.base import Section
from looplm.config.schema.carry import Carry, NoCarry
from looplm.config.schema.data import Data
from looplm.config.schema.loop import Loop
from looplm.config.schema.model import Model
from looplm.config.schema.objective import FinalCrossEntropy, Objective
from looplm.config.schema.optim import Optim


class Mesh(Section):
    """Sizes of the mesh axes; one of them may be -1, which takes all devices that are left."""

    replica: int = 1
    """Slices or islands with slow links between them: weights are copied."""
    data: int = 1
    """Weights are copied, the batch is split."""
    fsdp: int = -1
    """Weights and batch are split."""
    expert: int = 1
    """Experts and batch are split."""
    context: int = 1
    """The sequence is split; see `sharding.keys`."""
    tensor: int = 1
    """Heads, feed-forward and vocabulary are split; between the branches of a layer the sequence is."""


class Sharding(Section):
    """How weights that are split over `mesh.fsdp` meet the batch, and queries the keys of a sequence that is split."""

    gather: Literal["once", "per_layer", "auto"] = "auto"
    """`once`: the weights are made whole before the loops and their gradient is reduced after them, once a step.
    `per_layer`: at every layer of every loop; for models whose whole block does not fit a device. `auto`: once, unless
    that takes more than a third of a device's memory."""
    keys: Literal["gathered", "ring", "auto"] = "auto"
    """Of a sequence that is split over `mesh.context`. `gathered`: every device has all keys and values of a layer
    while it attends. `ring`: they go around the devices, each of which has one part at a time. `auto`: gathered, unless
    they and their gradients take an eighth of a device's memory or more."""


class Recipe(Section):
    """What a machine asks of this config: where and how it runs, not what it computes."""

    devices: str
    """Pattern of the whole name that JAX gives a device, e.g. `TPU v5p|TPU v5`."""
    num_devices: PositiveInt
    """For how many of them it is."""
    settings: dict[str, JsonValue]
    """Leaves to set, e.g. `{"mesh.fsdp": 16}`; `--set` goes before them."""


class Checkpoint(Section):
    """When a run is saved, and which of its checkpoints stay."""

    every_steps: PositiveInt | None = 1000
    """Save after so many steps; None leaves it to `every_minutes`. The last step is always saved."""
    every_minutes: PositiveFloat | None = None
    """Also save when so many minutes have passed since the last save."""
    keep_last: PositiveInt = 3
    """The newest so many stay."""
    keep_every: PositiveInt | None = None
    """Checkpoints of steps that are multiples of this stay for good."""
    keep_best: NonNegativeInt = 0
    """So many with the lowest `best_metric` stay; only steps that are also evaluated (`eval.every_steps`) count."""
    best_metric: str | None = None
    """A metric of the evaluation, the lower the better; None means eval/loss_depth_{loop.num_loops}."""


class Eval(Section):
    """What is measured on held-out data in the course of training."""

    every_steps: NonNegativeInt = 0
    """Depth sweep on the held-out data after so many steps; 0 means never."""
    depths: tuple[PositiveInt, ...] | None = None
    """Depths that are scored; None means 1..num_loops."""
    max_batches: PositiveInt | None = 64
    """Held-out batches read during training, and of a task by `looplm eval` too; None means all."""


class Log(Section):
    """What is shown and kept of every step."""

    every_steps: PositiveInt = 10
    """A line on the console every so many steps (`metrics.jsonl` holds every step)."""
    tensorboard: bool = True
    """Whether to write files for TensorBoard too, into WORKDIR/tensorboard."""
    loads_every_steps: NonNegativeInt = 100
    """The load of every expert goes to `experts.jsonl` after so many steps, and at the first and the last; 0 means
    never."""
    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = ()
    """Services that get every number too. Each writes to this machine until its own variable names another place:
    WANDB_MODE=online, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID."""
    project: str = "looplm"
    """What the run is filed under there."""


Resize = Literal["vocabulary", "loops", "positions"]
"""In what weights from elsewhere may have another size."""


class Run(Section):
    """Everything that decides what a training run computes."""

    seed: NonNegativeInt = 0
    """Decides the first values, the order of data and everything that is drawn."""
    num_steps: PositiveInt
    """Optimizer steps."""
    init_from: str | None = None
    """Folder whose weights, and nothing else, a new run starts from: a run directory (its newest checkpoint that
    verifies), one of its checkpoints (RUN/checkpoints/12) or an official model. A run that is resumed no longer reads
    it."""
    init_allow_keys: tuple[str, ...] = ()
    """Keys of that official model's config.json which looplm does not know, and would refuse, to pass over."""
    init_resize: tuple[Resize, ...] = ()
    """In what those weights may have another size. `vocabulary`: rows of tokens are cut off at the end, and new ones
    are the mean of the others. `loops`: values that every loop has for itself are cut off, and new ones are the
    last. `positions`: rows of learned positions are cut off, and new ones are the old ones from the first on (arXiv
    2004.05150)."""
    teacher: str | None = None
    """Folder of the model that objective.kind=distill learns from, as of `init_from`. It is read at every start."""
    teacher_loops: PositiveInt | None = None
    """Loops that the teacher runs; None means its own."""
    model: Model
    """The architecture."""
    loop: Loop
    """How often the shared block runs."""
    objective: Objective = FinalCrossEntropy()
    """What is minimised."""
    carry: Carry = NoCarry()
    """What is kept of a batch from one optimizer step to the next."""
    optim: Optim
    """Optimizer, learning rate, what learns, and which updates are not made."""
    data: Data
    """What is read."""
    mesh: Mesh = Mesh()
    """How devices are arranged."""
    sharding: Sharding = Sharding()
    """How weights and keys travel between devices."""
    checkpoint: Checkpoint = Checkpoint()
    """When to save."""
    eval: Eval = Eval()
    """What to measure while training."""
    log: Log = Log()
    """What to show and keep."""
    recipes: tuple[Recipe, ...] = ()
    """The first that names the devices at hand is applied. Without one, a mesh left at its defaults is chosen by the
    size of the model (`train/machine.py`)."""
