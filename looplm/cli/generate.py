"""`looplm generate`: a text, a chat, or a file of prompts."""

import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from looplm.cli.options import AllowKey, Ema, RunOrOfficial, Step
from looplm.cli.output import console, messages, write_result
from looplm.errors import UserError
from looplm.masking import unmasked


def generate(
    workdir: RunOrOfficial,
    prompt: Annotated[str | None, typer.Option(help="Text to go on from; with --chat the user's message.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts, one a line; .jsonl: objects with `prompt` or `messages`, and maybe `seed`."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="With --prompts: file of the answers, a JSON object a line; a second start goes on with it."),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Answer as the training examples did: --prompt, standard input, or a conversation on a terminal.",
        ),
    ] = False,
    loops: Annotated[int | None, typer.Option(help="Loops for every token.")] = None,
    exit: Annotated[
        str | None, typer.Option(help="When a token leaves before the last loop, e.g. gate:0.9 or latent:0.03,min=2.")
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            help="Draft with so many loops of the model itself, or N:K for K tokens at once; same text, sooner."
        ),
    ] = None,
    show_exits: Annotated[
        bool, typer.Option("--show-exits", help="Print the loops that every token took on standard error.")
    ] = False,
    kv: Annotated[
        str | None,
        typer.Option(
            help="Keys of earlier tokens that a loop sees: ragged (the default), each, last, first, anchor:K, ring:K; "
            "`,bf16` or `,int8` behind it keeps them smaller."
        ),
    ] = None,
    allow_lossy_kv: Annotated[
        bool, typer.Option("--allow-lossy-kv", help="Take a --kv that `looplm eval --kv` found to cost much.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from the so many likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens that have this probability together.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Draw from tokens with this share of the likeliest one's probability.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: less of the tokens that are there already.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeatable.")] = None,
    contrast: Annotated[
        str | None, typer.Option(help="LOOP:WEIGHT, away from what is predicted after LOOP loops, e.g. 1:0.5.")
    ] = None,
    step_size: Annotated[float, typer.Option(help="How far a loop goes to its new state; 1 is all of the way.")] = 1.0,
    warm_start: Annotated[
        bool, typer.Option("--warm-start", help="A token starts from the last state of the token before it.")
    ] = False,
    prompt_exits: Annotated[
        bool,
        typer.Option(
            "--prompt-exits", help="With --exit: tokens of the prompt leave early too; else they run all loops."
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="With --prompts: answered at the same time.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    step: Step = None,
    ema: Ema = False,
    allow_key: AllowKey = None,
) -> None:
    """Write text: what follows a prompt or every prompt of a file, or the answers of a chat."""
    from looplm.cli.chat import answer_message, converse, read_message

    if (prompts is None) != (out is None):
        raise UserError("a file of prompts and one of answers go together; give --prompts FILE --out FILE.jsonl")
    if prompts is not None and (prompt is not None or chat):
        raise UserError("--prompts cannot go with --prompt or --chat; a .jsonl file may hold chats as `messages`")
    is_talk = chat and prompt is None and sys.stdin is not None and sys.stdin.isatty()
    if prompt is None and not chat and prompts is None:
        raise UserError("there is nothing to write about; give --prompt TEXT, --prompts FILE, or --chat")
    if prompt is None and not is_talk and prompts is None:
        prompt = read_message()
    import looplm
    from looplm.cli.exits import count_line, exit_lines
    from looplm.infer.prompt import require_template

    lm = looplm.load(workdir, step=step, ema=ema, allow_keys=allow_key or ())
    asked: dict[str, Any] = {
        "num_loops": loops, "exit": exit, "draft": draft, "kv": kv, "max_tokens": max_tokens,
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "stop": tuple(stop or ()), "contrast": contrast,
        "step_size": step_size, "warm_start": warm_start, "prompt_exits": prompt_exits,
        "allow_lossy_kv": allow_lossy_kv,
    }  # fmt: skip
    num_loops = lm.loop.num_loops if loops is None else loops
    depth = f"{num_loops} loops"
    # Beside the text, not in it: standard output can be piped on.
    weights = f"step {lm.step}{', averaged weights' * ema}" if lm.run else "official weights"
    told = f"{weights}, {f'at most {depth}, exit {exit}' if exit else depth}"
    if prompts is not None and out is not None:
        answer_file(lm, prompts, out, asked, seed, batch_size)
        messages.print(told)
        return

    def write(shown: bool = False, **more: Any) -> str:
        streams = shown and console.is_terminal
        said = more.get("prompts", [""])[0]
        if streams:
            unmasked(console.file).write(said)
            more["on_text"] = lambda _, piece: _show(piece)
        answers = lm.generate(seed=seed, **asked, **more)
        if streams:
            _show("\n")
        elif shown:
            write_result(said + answers[0])
        if show_exits:
            assert lm.tokenizer is not None, "generate has asked for one"
            for line in exit_lines(answers[0], lm.tokenizer, num_loops):
                messages.print(line)
        if draft is not None and answers.counts is not None:
            messages.print(count_line(answers.counts, num_loops))
        return answers[0]

    if chat:
        require_template(lm.chat)
        messages.print(told)

        def reply(said: list[dict[str, str]]) -> str:
            return write(messages=said)

        converse(reply) if prompt is None else answer_message(prompt, reply)
    elif prompt is not None:
        write(shown=True, prompts=[prompt])
        messages.print(told)


def answer_file(lm: Any, prompts: Path, out: Path, asked: dict[str, Any], seed: int, batch_size: int) -> None:
    """Answer all prompts of a file that are not answered yet, and say how many there were."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from looplm.infer.answers import Answers, read_prompts, seeds_of

    all_asked = read_prompts(prompts)
    settings = {name: value for name, value in asked.items() if name != "allow_lossy_kv"}
    seeds = seeds_of(all_asked, seed)
    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        closing(Answers(out, all_asked, settings | {"seed": seed, "step": lm.step})) as answers,
        Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as bar,
    ):
        task = bar.add_task("", total=len(all_asked), completed=len(answers.done))
        found = len(answers.done)
        for is_chat in (False, True):
            numbers = [
                number
                for number, one in enumerate(all_asked)
                if number not in answers.done and (one.messages is not None) == is_chat
            ]
            if not numbers:
                continue

            def keep(place: int, text: Any, numbers: list[int] = numbers) -> None:
                answers.write(numbers[place], text)
                bar.advance(task)

            given = [all_asked[number] for number in numbers]
            lm.generate(
                **{"messages": [one.messages for one in given]}
                if is_chat
                else {"prompts": [one.prompt for one in given]},
                **asked,
                seed=[seeds[number] for number in numbers],
                batch_size=batch_size,
                on_answer=keep,
            )
        messages.print(f"{len(answers.done)} answers in {out}, {found} of them from before")


def _show(piece: str) -> None:
    file = unmasked(console.file)
    file.write(piece)
    file.flush()
