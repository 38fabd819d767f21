"""`looplm data`: train a tokenizer, make and look at token datasets; make puzzles on grids."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from looplm.cli import grids
from looplm.cli.output import console, messages, write_result
from looplm.errors import UserError
from looplm.masking import mask

if TYPE_CHECKING:
    from looplm.data.build.report import BuildReport

app = typer.Typer(no_args_is_help=True, help="Train a tokenizer; turn text into a token dataset; make puzzles.")
app.add_typer(grids.app, name="grids")

Inputs = Annotated[list[Path], typer.Option("--input", help="Text files or folders; may be given several times.")]
Field = Annotated[str, typer.Option(help="Field or column of files with records that holds the text.")]
SkipDamaged = Annotated[
    bool,
    typer.Option("--skip-damaged", help="Take what can be read of damaged files, and where most records are left out."),
]


@app.command("tokenizer")
def data_tokenizer(
    input: Inputs,
    vocab_size: Annotated[int, typer.Option(help="Number of pieces.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.model.")],
    model_type: Annotated[str, typer.Option(help="bpe or unigram.")] = "bpe",
    symbol: Annotated[
        list[str] | None, typer.Option(help="A text that is always one piece; may be given several times.")
    ] = None,
    field: Field = "text",
    max_mb: Annotated[float | None, typer.Option(help="Read so much text at most; all when left out.")] = None,
    skip_damaged: SkipDamaged = False,
) -> None:
    """Train a SentencePiece tokenizer with byte fallback."""
    from looplm.data.account import Account, reasons
    from looplm.data.formats.document import Reading
    from looplm.data.formats.read import read_documents
    from looplm.data.tokenizer import train_tokenizer

    if max_mb is not None and not 0 < max_mb < 1e12:
        raise UserError(f"--max-mb {max_mb:g} must be positive; leave it out to read all")
    account = Account()
    documents = read_documents(input, account, Reading(field=field, skip_damaged=skip_damaged))
    path = train_tokenizer(
        (str(document.content) for document in documents),
        vocab_size,
        out,
        model_type=model_type,
        symbols=symbol or (),
        max_bytes=None if max_mb is None else int(max_mb * 1e6),
    )
    console.print(f"wrote {path}; skipped: {reasons(account.skipped)}")
    for line in account.details():
        console.print(line)


@app.command("build")
def data_build(
    input: Inputs,
    out: Annotated[str, typer.Option(help="Folder of the new dataset; of parts also an address, s3:// or gs://.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.model or tokenizer.json; may be left out for files of tokens.")
    ] = None,
    validation_fraction: Annotated[
        float, typer.Option(help="Share of documents held out; above 0 makes OUT/train and OUT/validation.")
    ] = 0.0,
    workers: Annotated[int | None, typer.Option(help="Processes; the number of cores when left out.")] = None,
    field: Field = "text",
    shuffle: Annotated[
        int | None, typer.Option(help="Seed of a random order of documents; that of the input when left out.")
    ] = None,
    dedup: Annotated[bool, typer.Option("--dedup", help="Leave out copies of earlier documents.")] = False,
    examples: Annotated[
        str | None, typer.Option(help="Supervised: pairs (prompt and answer) or chat (messages); loss on answers only.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="Format with {prompt}{answer} or {role}{content}; a file with that or Jinja; or the name of a "
            "template of the tokenizer."
        ),
    ] = None,
    prompt_field: Annotated[str, typer.Option(help="With --examples pairs.")] = "prompt",
    answer_field: Annotated[str, typer.Option(help="With --examples pairs.")] = "answer",
    messages_field: Annotated[str, typer.Option(help="With --examples chat.")] = "messages",
    skip_damaged: SkipDamaged = False,
    bos: Annotated[str | None, typer.Option(help="Name of the token that begins a document.")] = None,
    eos: Annotated[str | None, typer.Option(help="Name of the token that ends a document.")] = None,
    token_dtype: Annotated[
        str, typer.Option(help="uint16, uint32 or int32: of token files without a header.")
    ] = "uint16",
    separator_id: Annotated[int | None, typer.Option(help="Token between documents of token files.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Of token files without a tokenizer.")] = None,
    part: Annotated[
        str | None, typer.Option(help="Make only part I/N of the dataset, or I-J/N, in a folder of parts for `join`.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="What makes parts: `local`, this machine, one after another; or `ray`, a cluster.")
    ] = "local",
) -> None:
    """Tokenise text into a token dataset; take over ready-made tokens. Killed, the same command goes on."""
    from looplm.data.build.bar import progress_bar
    from looplm.data.build.engine import check_engine, make_parts
    from looplm.data.build.part import read_parts
    from looplm.data.build.request import make_request
    from looplm.data.formats.document import make_reading
    from looplm.data.remote import is_remote, without_options
    from looplm.data.writer import build

    reading = make_reading(
        field=field,
        examples=examples,
        prompt_field=prompt_field,
        answer_field=answer_field,
        messages_field=messages_field,
        template=template,
        skip_damaged=skip_damaged,
        token_dtype=token_dtype,
        separator_id=separator_id,
    )
    parts = None if part is None else read_parts(part)
    check_engine(engine, parts)
    if parts is None and is_remote(out):
        raise UserError(
            f"--out {without_options(out)} is an address, where only parts are made; give a folder, or --part 1/1 and "
            "then `looplm data join`, which writes to addresses"
        )
    request = make_request(
        input,
        tokenizer,
        reading=reading,
        bos=bos,
        eos=eos,
        vocab_size=vocab_size,
        validation_fraction=validation_fraction,
        shuffle_seed=shuffle,
        dedup=dedup,
    )
    with progress_bar(messages) as progress:
        if parts is None:
            _show(build(request, Path(out), workers, progress), out)
            return
        for made in make_parts(request, parts, out, engine=engine, num_workers=workers, progress=progress):
            console.print(f"{'found' if made.was_there else 'wrote'} {made}")
            for line in made.account.details():
                console.print(line)


@app.command("join")
def data_join(
    parts: Annotated[str, typer.Argument(help="The folder of the parts, or its address.")],
    out: Annotated[str, typer.Option(help="Folder of the new dataset, or an address, s3:// or gs://.")],
    skip_damaged: SkipDamaged = False,
) -> None:
    """Make the dataset of all parts that `build --part` made: the bytes of the build on one machine."""
    from looplm.data.build.bar import progress_bar
    from looplm.data.build.join import join_parts

    with progress_bar(messages) as progress:
        _show(join_parts(parts, out, skip_damaged=skip_damaged, progress=progress), out)


def _show(report: "BuildReport", out: object) -> None:
    console.print(f"{'found' if report.was_there else 'wrote'} {out}: {report}")
    for line in report.details():
        console.print(line)


@app.command("inspect")
def data_inspect(
    dataset: Annotated[str, typer.Argument(help="A dataset folder, or its address.")],
    samples: Annotated[int, typer.Option(help="Documents to show the beginning of.")] = 3,
    verify: Annotated[bool, typer.Option("--verify", help="Also read all files and compare their digests.")] = False,
) -> None:
    """Counts, a histogram of lengths and decoded samples of a dataset."""
    from looplm.data.inspect import describe

    for line, text in describe(dataset, samples, verify=verify):
        write_result(mask(line) + text)
