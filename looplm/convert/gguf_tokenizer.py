"""A SentencePiece model as the keys of a GGUF file, from which llama.cpp cuts texts alike."""

from typing import Any

from looplm.data.tokenizer import Tokenizer
from looplm.data.tokenizer.sentencepiece import SentencePieceTokenizer
from looplm.errors import UserError

UNUSED = 5
"""The type of a piece that no text has; llama.cpp has the types of sentencepiece_model.proto."""


def add_tokenizer(writer: Any, tokenizer: Tokenizer | None, vocab_size: int) -> str:
    """Write the pieces into the keys, and return what is said of it.

    Raises UserError for a tokenizer of another library, and for one whose rules llama.cpp does not have.
    """
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        return "none in the run"
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise UserError(
            f"{tokenizer.path} is a tokenizer of Hugging Face, whose rules a GGUF file names by what llama.cpp calls "
            "them; write the folder with `looplm convert export --kind nanbeige` and give it to llama.cpp's "
            "convert_hf_to_gguf.py"
        )
    rules = tokenizer.rules
    others = {
        "is a unigram model": not rules.is_bpe,
        "replaces characters": bool(rules.normalisation),
        "takes several spaces for one": rules.merges_spaces,
    }
    if told := [what for what, is_so in others.items() if is_so]:
        raise UserError(
            f"{tokenizer.path} {' and '.join(told)}, and llama.cpp would cut texts otherwise; train a tokenizer with "
            "`looplm data tokenizer`"
        )
    pieces = tokenizer.listed()
    missing = vocab_size - len(pieces)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*(piece.text for piece in pieces), *(f"[PAD{i}]" for i in range(missing))])
    writer.add_token_scores([*(piece.score for piece in pieces), *[-10_000.0] * missing])
    writer.add_token_types([*(piece.kind for piece in pieces), *[UNUSED] * missing])
    writer.add_add_space_prefix(rules.adds_space)
    for add, token_id in ((writer.add_bos_token_id, tokenizer.bos_id), (writer.add_eos_token_id, tokenizer.eos_id)):
        if token_id >= 0:
            add(token_id)
    writer.add_add_bos_token(tokenizer.bos_id >= 0)
    writer.add_add_eos_token(False)
    return f"SentencePiece, {len(pieces)} pieces"
