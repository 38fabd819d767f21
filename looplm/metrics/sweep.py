"""The depth sweeps of a run directory: `eval/depth_sweep-<step>.json`, written by evaluation, read by the report.

Those of averaged weights are in `depth_sweep-<step>-ema.json` beside them, those of other data than the run's own in
`depth_sweep-<step>-data-<fingerprint>.json`, and one that was asked for and lacks depths of the sweep that is there in
`depth_sweep-<step>-some-depths.json`, for people; the report is about the others.
"""

import re
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from looplm.data.folder import write_result
from looplm.errors import UserError
from looplm.masking import mask
from looplm.metrics.stored import Stored, file_name

FILE_NAME = re.compile(r"depth_sweep-(\d+)\.json")
SOME_DEPTHS = "-some-depths"


class Gain(Stored):
    """Loss at `from_depth` minus loss at `to_depth` in nats per token, with its 95 % bootstrap interval."""

    from_depth: int
    to_depth: int
    nats: float
    low: float
    high: float


class Calibrated(Stored):
    """The numbers at every depth with a temperature fitted for that depth alone; the lists run over the sweep's depths.

    Truncated loops are read with confidence that they do not have, so a raw sweep overstates what depth is worth. The
    documents are cut in two halves; each is scored at the temperatures that were fitted on the other.
    """

    temperature: list[float]
    """Mean of the two halves' temperatures; logits are divided by it."""
    loss: list[float]
    loss_low: list[float]
    loss_high: list[float]
    bits_per_byte: list[float | None]
    change_low: list[float]
    change_high: list[float]
    """95 % interval of the calibrated loss minus that at the trained depth, paired."""
    gain: Gain | None = None
    """As that of the sweep, of calibrated losses."""


class Solve(Stored):
    """Examples of a task whose answers are all right; the lists run over `depths`. 95 % intervals are those of Clopper
    and Pearson."""

    num_examples: int
    depths: list[int]
    """1, 2, ... the deepest of the sweep."""
    at: list[float]
    """Share that is solved at the depth."""
    at_low: list[float]
    at_high: list[float]
    by: list[float]
    """Share that is solved at the depth or at one before it: what leaving at the right loop could reach."""
    by_low: list[float]
    by_high: list[float]
    lost: list[float]
    """Share that was solved before and is not at the depth."""
    needs: dict[str, int | None]
    """`p50`, `p90`, `p99`: the loops after which so many of the examples that are ever solved have been."""


class Sample(Stored):
    """A held-out text, token by token."""

    pieces: list[str]
    exit_depth: list[int] | None = None
    """The loop after which a token was predicted; None without an exit gate."""
    loss: list[float | None] | None = None
    """Its loss there, nats."""
    depths: list[int] = Field(default_factory=list)
    loss_by_depth: list[list[float]] = Field(default_factory=list)
    """For each of `depths` the loss of every token, nats."""

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        lists = [self.exit_depth, self.loss, *self.loss_by_depth]
        if any(one is not None and len(one) != len(self.pieces) for one in lists):
            raise ValueError("pieces, exit_depth and loss differ in length")
        if len(self.depths) != len(self.loss_by_depth):
            raise ValueError(f"loss_by_depth has {len(self.loss_by_depth)} lists for {len(self.depths)} depths")
        return self


class LoopMeans(Stored):
    """What every loop does to the state, means over the scored tokens; the lists run over loops 1, 2, ...

    See `metrics.loop_stats.LoopStatistics` for what they mean.
    """

    state_norm: list[float]
    residual_rel: list[float]
    update_cosine: list[float]
    """0 for the first loop, which has no update before it."""
    token_correlation: list[float]
    exit_probability: list[float] | None = None
    """Mean of the gate's exit distribution, up to the trained depth; None without a gate."""


class Generation(Stored):
    """A text that the model wrote after a prompt."""

    loops: int
    prompt: str
    text: str
    sampling: str = ""
    """How long it could be and how its tokens were chosen, for people."""


class Depth(NamedTuple):
    """The held-out numbers at one depth: loss and its 95 % interval in nats per token, bits per byte, accuracy, and
    the paired interval of the loss minus that at the trained depth."""

    depth: int
    loss: float
    low: float
    high: float
    bits_per_byte: float | None
    accuracy: float
    change_low: float
    change_high: float


class Sweep(Stored):
    """One evaluation of all depths; the lists run over `depths`."""

    step: int
    ema: bool = False
    """Whether the moving average of the weights was scored."""
    data: str
    num_tokens: int
    num_bytes: int
    num_documents: int
    depths: list[int]
    trained_depth: int
    loss: list[float]
    loss_low: list[float]
    loss_high: list[float]
    bits_per_byte: list[float | None]
    """None where no text is scored: tasks, answers only, token files without their texts."""
    accuracy: list[float]
    change_low: list[float]
    change_high: list[float]
    """95 % interval of the loss at every depth minus that at the trained depth, paired by document: far narrower than
    the intervals of the losses themselves, since documents differ more than depths do."""
    gain: Gain | None = None
    calibrated: Calibrated | None = None
    """None of a sweep of an earlier version, and of a single document."""
    solve: Solve | None = None
    """Of tasks."""
    exit_histogram: list[float] | None = None
    """Share of tokens that exit after loop 1, 2, ... at `exit_threshold`."""
    exit_threshold: float | None = None
    expected_depth: float | None = None
    """Mean exit loop."""
    exit_loss: float | None = None
    """Loss when every token is read at its exit loop, nats per token."""
    xz_bits_per_byte: float | None = None
    """What `xz -9` reaches on the same text."""
    sample: Sample | None = None
    loops: LoopMeans | None = None
    generations: list[Generation] = Field(default_factory=list)

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        for name in ("loss", "loss_low", "loss_high", "bits_per_byte", "accuracy", "change_low", "change_high"):
            if len(getattr(self, name)) != len(self.depths):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {len(self.depths)} depths")
        return self

    def save(self, folder: Path, *, other_data: str | None = None, keeps_depths: bool = False) -> Path:
        """Writes depth_sweep-<step>.json, or a name that says what is special, atomically.

        Args:
            other_data: the fingerprint of the data, where they are not the run's own.
            keeps_depths: leave a sweep alone that has depths which this one lacks.
        """
        path = folder / file_name("depth_sweep", self.step, ema=self.ema, other_data=other_data)
        if keeps_depths and self._lacks_depths_of(path):
            path = path.with_stem(f"{path.stem}{SOME_DEPTHS}")
        write_result(path, self.as_file())
        return path

    def as_file(self) -> bytes:
        """What a file of it holds."""
        shown = self.model_copy(update={"data": mask(self.data)})
        return (shown.model_dump_json(indent=1) + "\n").encode()

    def _lacks_depths_of(self, path: Path) -> bool:
        try:
            return path.exists() and not set(_read(path).depths) <= set(self.depths)
        except UserError:
            return False  # a broken file is better replaced

    @property
    def rows(self) -> list[Depth]:
        """The numbers depth by depth, shallow first."""
        losses = (self.depths, self.loss, self.loss_low, self.loss_high)
        columns = (*losses, self.bits_per_byte, self.accuracy, self.change_low, self.change_high)
        return sorted(Depth(*row) for row in zip(*columns, strict=True))

    @property
    def trained(self) -> Depth | None:
        """The numbers at the trained depth, if it was scored."""
        return next((row for row in self.rows if row.depth == self.trained_depth), None)


def read_sweeps(folder: Path) -> list[Sweep]:
    """Returns the sweeps of `folder`, the earliest step first; none if there is no such folder.

    Raises UserError for a file that does not hold a sweep.
    """
    files = [path for path in folder.glob("depth_sweep-*.json") if FILE_NAME.fullmatch(path.name)]
    return sorted((_read(path) for path in files), key=lambda sweep: sweep.step)


def _read(path: Path) -> Sweep:
    try:
        return Sweep.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the file"
        raise UserError(f"{path} is no depth sweep: {where}: {fault['msg']}; run `looplm eval` again") from error
