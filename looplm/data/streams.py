"""Rows that go on over steps: row b of a step begins where row b of the step before ended.

Row b of step n is window b * (W // B) + n of the W windows of a dataset, and after W // B steps its first one again: a
function of the step alone. Evaluation, which reads every window once, has streams of ceil(W / B) windows. Positions say
what goes on: where a row's first token is in a document that it was in already, positions of that document begin at S
instead of 0.
"""

import numpy as np

from looplm.data.window import DatasetWindows
from looplm.errors import UserError


class Streams:
    """The windows of a dataset in the order of B streams."""

    def __init__(self, windows: DatasetWindows, batch_size: int, *, whole: bool = False) -> None:
        """Raises UserError where there are fewer windows than rows.

        whole: every window is in a stream, and what the last streams lack is padding; else the windows that the streams
        do not share equally are left out.
        """
        self.windows, self.batch_size = windows, batch_size
        self.steps = -(-len(windows) // batch_size) if whole else len(windows) // batch_size
        """After so many, every row is at its beginning again."""
        if not self.steps:
            raise UserError(
                f"data.order=streams gives each of the {batch_size} rows of a batch a part of the dataset, and "
                f"{windows.dataset.location} has {len(windows)} windows of data.sequence_length="
                f"{windows.sequence_length}; use less data.batch_tokens, shorter windows or more text"
            )

    def __len__(self) -> int:
        """Windows of all streams."""
        return self.steps * self.batch_size

    def window(self, numbers: np.ndarray) -> np.ndarray:
        """Return which windows have these numbers, (B,): number n * B + b is row b of step n."""
        step, row = np.divmod(np.asarray(numbers, np.int64), self.batch_size)
        return row * self.steps + step % self.steps

    def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Read windows as `Windows.read` does, with positions that say what goes on."""
        window_B = self.window(numbers)
        batch, length = self.windows.read(window_B), self.windows.sequence_length
        offsets = self.windows.dataset.document_offsets
        # Behind the end of the dataset there is padding, which goes on in nothing.
        first_B = np.minimum(window_B * length, offsets[-1]).astype(offsets.dtype)
        begins_B = offsets[np.searchsorted(offsets, first_B)] == first_B
        goes_on_B = (window_B % self.steps > 0) & ~begins_B
        batch["positions"] = batch["positions"] + length * (goes_on_B[:, None] & (batch["segments"] == 1))
        return batch | {"positions": batch["positions"].astype(np.int32)}
