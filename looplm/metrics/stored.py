"""Results of an evaluation in a run directory: WORKDIR/eval/KIND-<step>.json, and names for what is special of them."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from looplm.data.folder import write_result
from looplm.errors import UserError
from looplm.masking import mask


class Stored(BaseModel):
    """Base of what such a file holds. Keys that a newer version adds are ignored; NaN and infinities are texts."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")


class Measured(Stored):
    """What every such file says of what was measured."""

    step: int
    ema: bool = False
    """Whether the moving average of the weights was scored."""
    data: str
    """Name of the held-out data."""
    num_tokens: int
    """Tokens that were scored."""
    num_documents: int

    def save(self, folder: Path, kind: str, *, other_data: str | None = None) -> Path:
        """Write KIND-<step>.json, or a name that says what is special, atomically. Raises OSError."""
        path = folder / file_name(kind, self.step, ema=self.ema, other_data=other_data)
        write_result(path, self.as_file())
        return path

    def as_file(self) -> bytes:
        """Return what a file of it holds."""
        shown = self.model_copy(update={"data": mask(self.data)})
        return (shown.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read a file; None if it is not there. Raises UserError for a file that holds something else."""
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(str(part) for part in fault["loc"]) or "the file"
            raise UserError(
                f"{path} is no {cls.__name__} of this version: {where}: {fault['msg']}; run `looplm eval` again"
            ) from error


def file_name(kind: str, step: int, *, ema: bool = False, other_data: str | None = None) -> str:
    """Return e.g. `exits-300-ema.json`. other_data: the fingerprint of data that are not the run's own."""
    return f"{kind}-{step}{'-ema' * ema}{f'-data-{other_data[:8]}' if other_data else ''}.json"
