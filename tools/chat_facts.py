"""Small chats with right answers, of four kinds, and how many of them a model answers: what SFT on chats is tried on.

    python tools/chat_facts.py write runs/facts                               chats.jsonl and held_out.jsonl
    python tools/chat_facts.py ask runs/tuned runs/facts/held_out.jsonl       exact answers, kind by kind

No question of held_out.jsonl is in chats.jsonl. `repeat` and `last` are about names of the standard library's modules,
`after` about numbers; of `module` the facts are in both files, and held-out wordings of a fact are not.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

import looplm

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
MODULES = (
    "argparse", "asyncio", "bisect", "calendar", "codecs", "collections", "contextlib", "copy", "csv", "dataclasses",
    "datetime", "decimal", "difflib", "email", "enum", "fnmatch", "fractions", "functools", "getpass", "glob", "gzip",
    "hashlib", "heapq", "html", "http", "inspect", "io", "itertools", "json", "locale", "logging", "math", "os",
    "pathlib", "pickle", "platform", "queue", "random", "re", "select", "shutil", "signal", "socket", "sqlite3",
    "statistics", "string", "subprocess", "tempfile", "textwrap", "threading", "time", "token", "types", "typing",
    "unittest", "urllib", "uuid", "warnings", "wave", "weakref", "zipfile", "zlib",
)  # fmt: skip
WITH_FACTS = ("contextlib", "copy", "csv", "fnmatch", "functools", "glob", "heapq", "queue", "shutil")
WORDINGS = ("Which module has {}?", "Where is {} from?", "I need {}. What do I import?", "{} is part of what?")
Chat = tuple[str, str, str]
"""(kind, question, answer)."""


def made(kind: str, rng: random.Random) -> Chat:
    """A chat of a kind whose questions have no end."""
    names = rng.sample(MODULES, 3)
    match kind:
        case "repeat":
            return kind, f"Repeat: {' '.join(names)}", " ".join(names)
        case "last":
            return kind, f"Which is last: {', '.join(names)}?", names[-1]
        case _:
            number = rng.randrange(10_000)
            return kind, f"What comes after {number}?", str(number + 1)


def facts() -> Iterator[list[Chat]]:
    """Of every fact its wordings."""
    homes = Counter(name for module in WITH_FACTS for name in import_module(module).__all__)
    for module in WITH_FACTS:
        for name in import_module(module).__all__:
            if homes[name] == 1:
                yield [("module", wording.format(name), module) for wording in WORDINGS]


@app.command()
def write(out: Path, per_kind: int = 1500, held_out: int = 60, seed: int = 0) -> None:
    """Write both files, with so many questions of every kind; of `module` as many as there are."""
    rng = random.Random(seed)
    train, asked = list[Chat](), list[Chat]()
    for kind in ("repeat", "last", "after"):
        chats = sorted({made(kind, rng) for _ in range(2 * (per_kind + held_out))})
        rng.shuffle(chats)
        asked += chats[:held_out]
        train += chats[held_out : held_out + per_kind]
    wordings = [rng.sample(of_one, len(of_one)) for of_one in facts()]
    asked += [one for one, *_ in wordings][:held_out]
    kept = [chat for one, *others in wordings[:held_out] for chat in others]
    train += per_kind // len(kept) * (kept + [chat for of_one in wordings[held_out:] for chat in of_one])
    rng.shuffle(train)
    out.mkdir(parents=True, exist_ok=True)
    for name, chats in {"chats": train, "held_out": asked}.items():
        lines = [
            json.dumps({"kind": kind, "messages": [message("user", question), message("assistant", answer)]}) + "\n"
            for kind, question, answer in chats
        ]
        (out / f"{name}.jsonl").write_text("".join(lines))
        print(f"{out / name}.jsonl: {len(chats)} chats, {dict(Counter(kind for kind, *_ in chats))}")


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@app.command()
def ask(
    run: Path, chats: Path, loops: Annotated[int | None, typer.Option(help="Of every token; the run's.")] = None
) -> None:
    """Ask a run's model every question, greedily, and count the answers that are right to the letter."""
    asked = [json.loads(line) for line in chats.read_text().splitlines()]
    answers = looplm.load(run).generate(
        messages=[one["messages"][:-1] for one in asked], max_tokens=48, num_loops=loops, batch_size=32
    )
    right = Counter(one["kind"] for one, answer in zip(asked, answers, strict=True) if _is_right(one, answer))
    every = Counter(one["kind"] for one in asked)
    told = ", ".join(f"{kind} {right[kind]}/{every[kind]}" for kind in every)
    print(f"{run}: {right.total()}/{every.total()} = {right.total() / every.total():.1%}: {told}")


def _is_right(one: dict, answer: str) -> bool:
    return answer.strip() == one["messages"][-1]["content"]


if __name__ == "__main__":
    app()
