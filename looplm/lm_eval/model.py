"""The model `looplm` of lm-evaluation-harness. Importing this module registers it there."""

from collections.abc import Sequence
from difflib import get_close_matches
from inspect import signature
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from looplm.api import DType
from looplm.errors import UserError
from looplm.lm_eval.answers import Answers
from looplm.lm_eval.opening import batch_size_of, opened, parse_loops


@register_model("looplm")
class LooplmModel(LM):
    """A run of looplm, or an official model, at one depth.

    Those with the same settings share what is loaded; likelihoods of all depths that the shared `Answers` know of come
    from one pass.
    """

    def __init__(
        self,
        workdir: str | None = None,
        loops: int | str | None = None,
        *,
        pretrained: str | None = None,
        step: int | None = None,
        ema: bool = False,
        dtype: DType | None = None,
        max_length: int | None = None,
        allow_keys: str = "",
        exit: str | None = None,
        kv: str | None = None,
        draft: str | int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        """Load it. Arguments are those of `--model_args` and of the harness.

        Args:
            workdir: run directory, one of its checkpoints, or an official model's folder.
            loops: how many run; the trained number when left out.
            pretrained: another name for `workdir`, the harness's own.
            step, ema, dtype: as of `looplm.load`.
            max_length: tokens that it may read at once; see `opened`.
            allow_keys: names joined by `+`; as of `looplm.load`.
            exit, kv, draft: how texts are written, as of `LoadedLM.generate`; `;` stands for the comma, at which the
                harness cuts.
            batch_size: rows of a pass, or `auto`.
            max_batch_size, device: the harness gives them; JAX chooses.

        Raises UserError for what is not known, and as `opened`.
        """
        super().__init__()
        for name, value in unknown.items():
            near = get_close_matches(name, list(signature(type(self)).parameters), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"model_args hold {name}={value!r}, which looplm does not know{hint}")
        folder = workdir or pretrained
        if folder is None:
            raise UserError("model_args name no model; give workdir=RUN, or workdir=DIR of an official model")
        keys = tuple(filter(None, allow_keys.split("+")))
        rules = [rule.replace(";", ",") if isinstance(rule, str) else rule for rule in (exit, kv, draft)]
        self.answers: Answers = opened(
            str(folder), step, ema, dtype, max_length, batch_size_of(batch_size), keys, *rules
        )
        depths = parse_loops(loops, self.answers.model.loop.num_loops)
        if len(depths) > 1:
            raise UserError(
                f"loops={loops} is several depths, and the harness asks a model of one; `python -m looplm.lm_eval` and "
                "`looplm eval --tasks` ask all of them in one pass"
            )
        (self.depth,) = depths

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return how likely every continuation is, and whether the model would write it."""
        answers = [tuple(answer) for answer in self.answers.log_likelihoods([r.args for r in requests], self.depth)]
        return self._kept("loglikelihood", requests, answers)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return how likely every text is."""
        texts = [request.args[0] for request in requests]
        return self._kept("loglikelihood_rolling", requests, self.answers.rolling(texts, self.depth))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return what the model writes behind every context."""
        return self._kept(
            "generate_until", requests, self.answers.write([request.args for request in requests], self.depth)
        )

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a chat as a text."""
        return self.answers.chat(chat_history, asks=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Choose a template, and return it."""
        if not chat_template:
            return None
        return self.answers.use_template(chat_template if isinstance(chat_template, str) else None)

    @property
    def tokenizer_name(self) -> str:
        """What stored requests are known by."""
        tokenizer = self.answers.model.tokenizer
        return f"looplm-{tokenizer.fingerprint[:16]}" if tokenizer is not None else ""

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at once."""
        return self.answers.shapes.max_length

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document; -1 without one."""
        tokenizer = self.answers.model.tokenizer
        return tokenizer.eos_id if tokenizer is not None else -1

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes of a model."""
        model = self.answers.model
        return {
            "model_num_parameters": model.functional.num_params,
            "model_dtype": model.model.dtype,
            "looplm_loops": self.depth,
            "looplm_trained_loops": model.loop.num_loops,
            "looplm_step": model.step,
            "looplm_max_length": self.max_length,
        }

    def _kept(self, kind: str, requests: Sequence[Any], answers: list[Any]) -> list[Any]:
        """Tell the harness's cache of answers."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return answers
