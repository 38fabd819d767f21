"""What a file holds: names say little, so its first bytes are looked at.

C4 and others publish JSON lines as .json.gz; .json is one array for some and lines for others; and in place of data lie
pointers of Git LFS, web pages and archives.
"""

import json
import re
from typing import Literal

from looplm.data.formats.stream import Damaged, FileStream
from looplm.data.formats.text import BYTE_ORDER_MARK
from looplm.data.source import LINE_SUFFIXES, TEXT_SUFFIXES, SourceFile
from looplm.errors import UserError

Kind = Literal["text", "lines", "values", "csv", "parquet", "arrow", "tokens"]
"""`lines` is a JSON object a line, `values` a JSON array or objects of several lines."""
_MAGICS: dict[bytes, Kind] = {
    b"PAR1": "parquet",
    b"ARROW1\0\0": "arrow",
    b"\xff\xff\xff\xff": "arrow",  # a stream of it
    b"\x93NUMPY": "tokens",
    (20240520).to_bytes(4, "little"): "tokens",
    (20240801).to_bytes(4, "little"): "tokens",
}
_SUFFIXES: dict[str, Kind] = {
    ".parquet": "parquet", ".arrow": "arrow", ".bin": "tokens", ".npy": "tokens", ".csv": "csv", ".tsv": "csv",
}  # fmt: skip
_POINTERS = {b"version https://git-lfs.github.com/": "Git LFS", b"/annex/objects/": "git-annex"}
_ARCHIVES = {b"PK\x03\x04": "zip", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar"}
_WEB_PAGE = re.compile(rb"\s*<(!doctype html|html)\b", re.IGNORECASE)
_RECORDS = re.compile(rb'\s*\[\s*\{\s*(?:"|\})')


def kind_of(file: SourceFile, stream: FileStream) -> Kind:
    """Return what a file holds. Raises Damaged for what stands in place of data, and UserError for archives and the
    like."""
    head = stream.peek().removeprefix(BYTE_ORDER_MARK)
    for mark, program in _POINTERS.items():
        if head.startswith(mark):
            raise Damaged(f"it is a pointer of {program} and not the data, which is still to be fetched")
    archive = next((name for mark, name in _ARCHIVES.items() if head.startswith(mark)), None)
    if archive or head[257:262] == b"ustar":
        raise UserError(f"input {file.path} is a {archive or 'tar'} archive; unpack it, and give the folder")
    kind = next((kind for mark, kind in _MAGICS.items() if head.startswith(mark)), None)
    if kind is None or (kind == "arrow" and file.suffix in _SUFFIXES):
        kind = _SUFFIXES.get(file.suffix) or _text_kind(file, head)
    elif stream.compression:
        raise UserError(f"input {file.path}: {kind} files are read by position; decompress it first")
    if kind != "text" and _WEB_PAGE.match(head):
        raise Damaged("it is a web page and not the data: an error or a login, perhaps")
    return kind


def _text_kind(file: SourceFile, head: bytes) -> Kind:
    if file.suffix in LINE_SUFFIXES or file.suffix == ".json":
        return _json_kind(head)
    if file.suffix in TEXT_SUFFIXES and file.suffix != ".txt":
        return "text"
    if b"\0" in head and file.suffix not in TEXT_SUFFIXES:
        raise UserError(f"input {file.path} holds no text, and is of no other kind that is known; leave it out")
    lines = [line for line in head.splitlines() if line.strip()]
    if len(lines) > 1 and len(head) >= FileStream.HEAD_BYTES:
        lines.pop()  # it may be cut
    if lines and all(_is_object(line) for line in lines):
        return "lines"
    return "values" if _RECORDS.match(head) or _is_object(head) else "text"


def _json_kind(head: bytes) -> Kind:
    """Of a file whose name says JSON."""
    first = next((line for line in head.split(b"\n") if line.strip()), b"").strip().decode("utf-8", "replace")
    try:
        json.loads(first)
    except json.JSONDecodeError as error:
        if first.startswith("{") and error.pos >= len(first) and len(first) < FileStream.HEAD_BYTES // 4:
            return "values"  # an object that goes on in the next line
    except RecursionError:
        return "lines"
    return "values" if first.startswith("[") else "lines"


def _is_object(text: bytes) -> bool:
    if not text.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
