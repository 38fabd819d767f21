"""Jinja templates as `transformers` renders them: models were trained on what its environment writes, to the character.

`{% generation %}` blocks say what of a chat is an answer. They are marked in the text by two characters that no text
may hold, and taken out again.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from looplm.data.formats.document import Part
from looplm.errors import UserError

BEGIN, END = "\ufdd0", "\ufdd1"
"""Around an answer. Noncharacters of Unicode, which are for use inside a program."""
_ANSWER = re.compile(f"{BEGIN}([^{BEGIN}{END}]*){END}")
_GENERATION = re.compile(r"\{%[-+]?\s*generation\b")


class BadTemplate(ValueError):
    """A template cannot be applied to a record."""


@dataclass(frozen=True, slots=True)
class JinjaTemplate:
    """A compiled template. Made by `jinja_template`."""

    _compiled: Any
    variables: frozenset[str]
    """Names that it looks up and that its environment does not give."""
    marks_answers: bool
    """Whether it has `{% generation %}` blocks."""

    def render(self, variables: Mapping[str, Any]) -> str:
        """Return its text. Raises BadTemplate, whatever goes wrong in it."""
        return self._marked(variables).replace(BEGIN, "").replace(END, "")

    def parts(self, variables: Mapping[str, Any]) -> tuple[Part, ...]:
        """Return its text with what is in `{% generation %}` blocks as learnt. Raises BadTemplate."""
        pieces = _ANSWER.split(self._marked(variables))
        if any(mark in piece for piece in pieces for mark in (BEGIN, END)):
            raise BadTemplate("one generation block lies in another")
        return tuple(Part(piece, bool(number % 2)) for number, piece in enumerate(pieces) if piece)

    def _marked(self, variables: Mapping[str, Any]) -> str:
        try:
            return self._compiled.render(variables)
        except Exception as error:  # whatever the template does; `raise_exception` among it
            raise BadTemplate(str(error) or type(error).__name__) from None


@lru_cache(maxsize=8)
def jinja_template(source: str) -> JinjaTemplate:
    """Compile a template. Raises UserError unless Jinja parses it."""
    try:
        import jinja2
        from jinja2 import meta
    except ImportError:
        raise UserError("a Jinja template needs the `jinja2` library; run `pip install looplm[hf]`") from None
    environment = _environment()
    try:
        compiled = environment.from_string(source)
        names = meta.find_undeclared_variables(environment.parse(source))
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is no Jinja template: line {error.lineno}: {error.message}") from None
    return JinjaTemplate(compiled, frozenset(names - set(environment.globals)), bool(_GENERATION.search(source)))


def _environment() -> Any:
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (Jinja annotates it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            return f"{BEGIN}{caller()}{END}"

    def refuse(message: str) -> None:
        raise BadTemplate(message)

    def now(pattern: str) -> str:
        return datetime.now().strftime(pattern)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": now}
    environment.filters["tojson"] = _to_json
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own is for web pages: it escapes quotes and brackets, and sorts keys.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
