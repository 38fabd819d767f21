"""`looplm convert`: official folders of Hugging Face to runs, and back."""

from pathlib import Path
from typing import Annotated

import typer

from looplm.cli.options import AllowKey, Ema, Step
from looplm.cli.output import console

app = typer.Typer(no_args_is_help=True, help="Import official models as runs; export runs as official models.")


@app.command("import")
def convert_import(
    hf_dir: Annotated[Path, typer.Argument(help="Folder with config.json and safetensors files.")],
    workdir: Annotated[Path, typer.Argument(help="Run directory to be made.")],
    allow_key: AllowKey = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Also compare logits with the library transformers; needs torch.")
    ] = False,
) -> None:
    """Make a run of an official model: its weights, its config, its tokenizer."""
    from looplm.convert.import_folder import import_folder

    import_folder(hf_dir, workdir, console, allow_keys=allow_key or (), reference=reference)


@app.command("export")
def convert_export(
    workdir: Annotated[Path, typer.Argument(help="Run directory.")],
    hf_dir: Annotated[Path, typer.Argument(help="Folder to be made.")],
    step: Step = None,
    kind: Annotated[
        str | None, typer.Option(help="Family, e.g. ouro or llama; the first that can say the model when left out.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; as it came when nothing was trained, or float32.")
    ] = None,
    ema: Ema = False,
) -> None:
    """Write a run as an official model's folder: config.json, safetensors, tokenizer, model card."""
    from looplm.convert.export_folder import export_run

    export_run(workdir, hf_dir, console, step=step, kind=kind, dtype=dtype, ema=ema)


@app.command("gguf")
def convert_gguf(
    workdir: Annotated[Path, typer.Argument(help="Run directory.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="File to be made.")],
    step: Step = None,
    kind: Annotated[
        str, typer.Option("--type", help="What matrices are stored in: f32, f16, bf16, q8_0, q5_0 or q4_0.")
    ] = "f16",
    ema: Ema = False,
) -> None:
    """Write a run as a GGUF file, which llama.cpp runs with its loops."""
    from looplm.convert.gguf_file import write_gguf

    write_gguf(workdir, target, console, step=step, kind=kind, ema=ema)


@app.command("stablehlo")
def convert_stablehlo(
    workdir: Annotated[Path, typer.Argument(help="Run directory, or official folder.")],
    target: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Folder to be made.")],
    step: Step = None,
    loops: Annotated[int | None, typer.Option(help="Depth; that of the run when left out.")] = None,
    length: Annotated[int, typer.Option(help="Longest sequence, tokens.")] = 128,
    dtype: Annotated[str, typer.Option(help="Of weights and products: float32 or bfloat16.")] = "float32",
    platforms: Annotated[str, typer.Option(help="What it may run on, by commas.")] = "cpu,cuda,tpu",
    ema: Ema = False,
) -> None:
    """Write a run as a StableHLO program with its weights, which runs without looplm."""
    from looplm.convert.stablehlo_folder import write_stablehlo

    write_stablehlo(
        workdir,
        target,
        console,
        step=step,
        ema=ema,
        num_loops=loops,
        length=length,
        dtype=dtype,
        platforms=platforms.split(","),
    )


@app.command("retrofit")
def convert_retrofit(
    source: Annotated[Path, typer.Argument(metavar="HF_DIR", help="Official model of one loop, or a run of one.")],
    workdir: Annotated[Path, typer.Argument(help="Run directory to be made.")],
    block: Annotated[str, typer.Option(help="Layers that are looped, START:STOP, counted from 0.")],
    prelude: Annotated[str | None, typer.Option(help="Layers before them, e.g. 0:4; none when left out.")] = None,
    coda: Annotated[str | None, typer.Option(help="Layers after them, e.g. 18:22; none when left out.")] = None,
    loops: Annotated[int, typer.Option(help="Loops of evaluation, generation and training.")] = 4,
    inject: Annotated[
        str, typer.Option(help="How the prelude's output enters every loop: concat, add, gate; none: the first alone.")
    ] = "concat",
    select: Annotated[
        str,
        typer.Option(help="Layers of the block: given (all), even, average (of a cycle), angular."),
    ] = "given",
    layers: Annotated[
        int | None, typer.Option(help="So many of them; as many as make all loops as deep as the range when left out.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Text to choose by; fixed ids when left out.")] = None,
    lora_rank: Annotated[
        int | None, typer.Option(help="Give every loop LoRA of this rank, from the layers that it stands for.")
    ] = None,
    allow_key: AllowKey = None,
) -> None:
    """Make a looped model of a pretrained one: cut its layers into prelude, looped block and coda."""
    from looplm.convert.retrofit.write import Wish, retrofit

    wish = Wish(prelude, block, coda, loops, inject, select, layers, text, lora_rank)
    retrofit(source, workdir, wish, console, allow_keys=allow_key or ())
