"""The chat templates that come with a Hugging Face tokenizer: one, or several by names.

In tokenizer_config.json stands a text or a list of {name, template}; in files beside it `chat_template.jinja`, which is
`default`, `additional_chat_templates/NAME.jinja`, and the older `chat_template.json`. Files come before the config.
"""

import json
from pathlib import Path
from typing import Any

from looplm.errors import UserError

DEFAULT = "default"
"""What a single one is called."""


def templates_beside(folder: Path, configured: Any) -> Any:
    """Return what stands for `chat_template` in a config, files of the folder being taken in."""
    templates = named_templates(configured)
    if not templates and (older := folder / "chat_template.json").is_file():
        try:
            stored = json.loads(_text(older))
        except ValueError as error:
            raise UserError(f"{older} is not JSON: {error}; mend it or take it away") from None
        templates = named_templates(stored.get("chat_template") if isinstance(stored, dict) else None)
    if (file := folder / "chat_template.jinja").is_file():
        templates[DEFAULT] = _text(file)
    for file in sorted(folder.glob("additional_chat_templates/*.jinja")):
        templates[file.stem] = _text(file)
    if list(templates) == [DEFAULT]:
        return templates[DEFAULT]
    return [{"name": name, "template": template} for name, template in templates.items()]


def named_templates(configured: Any) -> dict[str, str]:
    """Return the templates of a config by name."""
    if isinstance(configured, str):
        return {DEFAULT: configured}
    if isinstance(configured, list):
        pairs = [(entry.get("name"), entry.get("template")) for entry in configured if isinstance(entry, dict)]
    else:
        pairs = list(configured.items()) if isinstance(configured, dict) else []
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}; mend it or take it away") from None
