"""A chat on a terminal, or one message that comes from a pipe."""

import sys
from collections.abc import Callable, Iterator

from looplm.cli.output import messages, write_result
from looplm.errors import UserError, show

Reply = Callable[[list[dict[str, str]]], str]
"""The answer to a chat of {role, content}."""


def answer_message(text: str, reply: Reply) -> None:
    """Print the answer to one message."""
    write_result(reply([{"role": "user", "content": text}]))


def read_message() -> str:
    """Return all of standard input, without the line end at its end. Raises UserError when there is no text in it."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8") if sys.stdin else ""
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8: {error}; give the message as UTF-8") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise UserError("standard input holds no message; write one into it, or give --prompt TEXT")
    return text


def converse(reply: Reply) -> None:
    """Answer line after line, each with all that was said before, until the end of the input."""
    chat: list[dict[str, str]] = []
    messages.print("one message a line; Ctrl-D ends the chat")
    for line in _lines():
        chat.append({"role": "user", "content": line})
        try:
            text = reply(chat)
        except UserError as error:  # the message is at fault, and the next one may not be
            show(error)
            chat.pop()
            continue
        write_result(text)
        chat.append({"role": "assistant", "content": text})


def _lines() -> Iterator[str]:
    """What is typed, but for blank lines."""

    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = input()
        except EOFError:
            print(file=sys.stderr)
            return
        if line.strip():
            yield line
