"""What `looplm.load` gives: a model with its weights, config and tokenizer, to be called from Python."""

from looplm.api.loaded import LoadedLM as LoadedLM
from looplm.api.loading import DType as DType
from looplm.api.loading import load as load
from looplm.api.result import Result as Result
