"""Tokenizers: what all can do (`base`), SentencePiece (`sentencepiece`, `train`) and Hugging Face (`huggingface`,
`official`)."""

from looplm.data.tokenizer.base import Tokenizer
from looplm.data.tokenizer.train import TOKENIZER_FILE, train_tokenizer

__all__ = ["TOKENIZER_FILE", "Tokenizer", "train_tokenizer"]
