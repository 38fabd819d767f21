"""Where the command line writes: results to standard output, all else to standard error.

Lines go out as they are: `rich`, which lays out tables and progress bars, would make spaces of tabs, drop carriage
returns, and take `[bold]` and `:key:` for orders.
"""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

from looplm.errors import warn
from looplm.masking import masked, unmasked

ENCODING_ERRORS = "looplm.output"


class Output(Console):
    """A console that prints texts as they are, each with a line end."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(_Line(x) if isinstance(x, str) else x for x in objects), **options)


@dataclass(frozen=True)
class _Line:
    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        yield Segment(f"{self.text}\n")


console, messages = Output(), Output(stderr=True)


def write_result(text: str) -> None:
    """Print what a model or a dataset says. Unlike all other lines it is not masked: a result is not altered."""
    unmasked(console.file).write(f"{text}\n")


@contextmanager
def standard_streams() -> Iterator[None]:
    """Inside, standard output and error are masked, hold any text, and may be closed by who reads them.

    Into files and pipes goes UTF-8, whatever the locale says. Exits with code 1 when what was printed could not be
    written; not when nobody wanted to read it.
    """
    before = sys.stdout, sys.stderr
    streams = [_Stream(stream) for stream in before]
    sys.stdout, sys.stderr = (masked(stream) for stream in streams)  # type: ignore[assignment, arg-type]
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before
    if streams[0].failure:
        warn(f"standard output cannot be written: {streams[0].failure.strerror}; what was printed is lost")
        sys.exit(1)


class _Stream:
    """A text stream that outlives its reader: what cannot be written is dropped, and the work goes on."""

    def __init__(self, stream: TextIO | None) -> None:
        # None: the descriptor was closed before the program began.
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        self.failure: OSError | None = None
        if isinstance(self._stream, io.TextIOWrapper):
            encoding = self._stream.encoding if self._stream.isatty() else "utf-8"
            self._stream.reconfigure(encoding=encoding, errors=ENCODING_ERRORS)

    def write(self, text: str) -> int:
        with self._tolerant():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._tolerant():
            self._stream.flush()

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.failure = error
            # What is buffered would be tried again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _encodable(error: UnicodeError) -> tuple[str | bytes, int]:
    """The bytes of a file name that is no text, as they are; an escape for what the encoding lacks."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(ENCODING_ERRORS, _encodable)
