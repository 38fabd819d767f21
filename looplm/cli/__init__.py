"""The command line: parses, calls, and turns a user's mistake into one line and exit code 2. No logic of its own.

Heavy imports are inside the commands, so that `--help` and config errors come at once.
"""

import errno
import sys
from typing import Annotated, Any

import typer

from looplm import __version__
from looplm.cli import adapter, checkpoint, convert, data, garbage, launch, machine, run
from looplm.cli.environment import backend_failure, settle_environment
from looplm.cli.generate import generate
from looplm.cli.output import console, messages, standard_streams
from looplm.distributed import leave
from looplm.errors import RunEnded, UserError, show
from looplm.launch.exit_codes import CRASHED, INTERRUPTED, MISTAKE

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(data.app, name="data")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(convert.app, name="convert")
app.add_typer(adapter.app, name="adapter")
app.add_typer(launch.app, name="launch")
for command in (run.train, run.eval, generate, run.report, run.demo, machine.doctor, machine.plan):
    app.command()(command)
app.command(name="compile")(machine.compile_command)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Pretrain, fine-tune and measure looped language models."""
    if version:
        console.print(f"looplm {__version__}")
        raise typer.Exit


UsageError: Any = typer.BadParameter.__base__
"""Of the click that this typer brings along or imports."""

MAKE_ROOM, PERMIT = "make room and give the same command again", "mend its permissions, or name another place"
OF_THE_DISK = {
    errno.ENOSPC: MAKE_ROOM,
    errno.EDQUOT: MAKE_ROOM,
    errno.EACCES: PERMIT,
    errno.EPERM: PERMIT,
    errno.EROFS: PERMIT,
}
"""What no program can be at fault for, and what to do, for whatever file it is."""


def main() -> None:
    """Entry point: 0 done, 2 the user's mistake, 75 and 76 a run that ended on purpose, anything else a crash."""
    with standard_streams():
        try:
            code = _main()
        except Exception:
            sys.excepthook(*sys.exc_info())  # here, where it is masked
            code = CRASHED
    sys.exit(code)


def _main() -> int | None:
    code = None
    settle_environment()
    try:
        code = app(prog_name="looplm", standalone_mode=False)
    except UserError as error:
        show(error)
        code = MISTAKE
    except RunEnded as error:
        if not console.quiet:
            show(error)
        leave(error.code)  # else what reads ahead from storage that does not answer would be waited for
    except UsageError as error:
        messages.print(_usage(error))
        code = MISTAKE
    except RuntimeError as error:
        if not (reason := backend_failure(error)):
            raise
        show(UserError(reason))
        code = MISTAKE
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        show(UserError(f"{where}{error.strerror}; {OF_THE_DISK[error.errno]}"))
        code = MISTAKE
    finally:
        garbage.restore()
    if code == INTERRUPTED:
        messages.print("looplm: interrupted; what is saved is whole, and the same command goes on from it")
        leave(INTERRUPTED)
    return code


def _usage(error: Any) -> str:
    """A mistake in the words of a command line, as one line; the help where no words were given."""
    message = error.format_message().strip()
    if "\n" in message:
        return message
    path = error.ctx.command_path if error.ctx else "looplm"
    return f"looplm: {message[:1].lower()}{message[1:].rstrip('.?')}; see `{path} --help`"
