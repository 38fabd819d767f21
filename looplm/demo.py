"""`looplm demo`: from nothing to a trained and measured looped model, offline.

The text is the source of the Python standard library of the running interpreter: real text that every machine has.
Whole files are held out. Every part is what the other commands call; nothing here is particular to the demo but the
choice of text.
"""

import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from looplm.config.load import given, load_config, override, shipped_configs
from looplm.config.schema import Run
from looplm.data.build.assemble import held_out_side
from looplm.data.formats.read import read_documents
from looplm.data.source import find_files
from looplm.data.tokenizer import train_tokenizer
from looplm.data.writer import build_dataset
from looplm.errors import UserError
from looplm.masking import unmasked
from looplm.metrics.sweep import Generation

SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages", "lib2to3", "idlelib", "ensurepip", "__pycache__"}
"""Not the library itself, or not text that a person wrote."""
PROMPT = '''def read_lines(path):
    """Return the lines of a text file."""
    with open(path) as file:
        '''
WRITTEN_TOKENS = 192
REPETITION_PENALTY = 1.2
"""Without it a small model falls into lines of blanks, at one loop sooner than at all, and nothing can be compared."""
HELD_OUT = 0.05
"""Share of files."""
DEPTHS = tuple(range(1, 9))


def run_demo(out: Path, overrides: Sequence[str], console: Console) -> Path:
    """Makes data, trains configs/demo_cpu.py, sweeps depths 1..8, writes text at two depths and the report.

    Everything goes below `out`; started again, it goes on where it was. Returns the report's path. Raises UserError
    when the interpreter comes without its sources or an override is wrong.
    """
    started = time.perf_counter()

    def announce(text: str) -> None:
        console.print(f"[{time.perf_counter() - started:5.1f} s] {text}", soft_wrap=True, highlight=False, markup=False)

    run = load_config(shipped_configs() / "demo_cpu.py", overrides)
    data, workdir = out / "data", out / "run"
    run = override(run, {"data.train": str(data / "train"), "data.validation": str(data / "validation")})
    if not data.exists():
        announce("training the tokenizer and building the dataset from the standard library's source")
        build_data(out, run, console)

    announce("training")
    import jax

    from looplm.compile.out_of_memory import explained
    from looplm.train.machine import for_machine
    from looplm.train.trainer import Trainer

    trainer = Trainer(for_machine(run, jax.devices(), given(overrides)), workdir, console)
    with explained(trainer):
        trainer.train()

    announce("scoring held-out files at all depths")
    from looplm.eval.command import evaluate
    from looplm.eval.tables import print_sweep

    sweep = evaluate(workdir, depths=",".join(map(str, DEPTHS)))
    print_sweep(sweep, console)

    announce("writing text at two depths")
    import looplm

    lm = looplm.load(workdir)
    for loops in (1, run.loop.num_loops):
        (text,) = lm.generate(
            [PROMPT], num_loops=loops, max_tokens=WRITTEN_TOKENS, repetition_penalty=REPETITION_PENALTY
        )
        sampling = f"up to {WRITTEN_TOKENS} tokens, always the likeliest, repetition penalty {REPETITION_PENALTY}"
        sweep.generations.append(Generation(loops=loops, prompt=PROMPT, text=text, sampling=sampling))
        console.rule(f"{loops} loop{'s' * (loops > 1)}")
        unmasked(console.file).write(f"{PROMPT}{text}\n")
    console.rule()
    sweep.save(workdir / "eval")

    announce("writing the report")
    from looplm.report.build import write_report

    report = write_report(workdir)
    announce(f"done: open {report.resolve()} in a browser")
    return report


def build_data(out: Path, run: Run, console: Console) -> None:
    """Writes out/tokenizer.model and out/data/{train,validation}."""
    files = [file.path for file in find_files([library()]) if not SKIPPED_FOLDERS & set(file.path.parts)]
    # The tokenizer does not see the held-out files either.
    documents = read_documents(files)
    texts = (str(document.content) for document in documents if not held_out_side(document.sha256, HELD_OUT))
    tokenizer = train_tokenizer(texts, run.model.vocab_size, out, overwrite=True)  # of a demo that was interrupted
    report = build_dataset(files, tokenizer, out / "data", validation_fraction=HELD_OUT)
    console.print(str(report), highlight=False)


def library() -> Path:
    """The folder of the standard library's sources."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    if not folder.is_dir():
        raise UserError(f"the standard library's folder {folder} does not exist; use an interpreter with sources")
    return folder
