"""What a looped model answers to the three kinds of questions of lm-evaluation-harness, at every depth.

Likelihoods of all depths come from one pass: who asks again at another depth gets what is known.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from looplm.api import LoadedLM
from looplm.config.schema import Mesh
from looplm.data.formats.jinja import BadTemplate
from looplm.data.formats.prompt import open_answer, prompt_parts
from looplm.errors import UserError
from looplm.lm_eval.asked import Asked, read_asked
from looplm.lm_eval.batches import Shapes, batches
from looplm.lm_eval.encoding import Encoding, Ids, Span, fitted, windows
from looplm.lm_eval.progress import bar
from looplm.lm_eval.score import DepthScorer
from looplm.lm_eval.writing import Writing
from looplm.sharding.mesh import build_mesh

ROWS = 16
"""Texts that a device writes at the same time, where nobody says how many."""


class Answer(NamedTuple):
    """How likely a continuation is."""

    log_likelihood: float
    """Nats."""
    is_greedy: bool
    """Whether it is what the model would write."""


NOTHING = Answer(0.0, True)
"""That nothing follows."""


class Answers:
    """Asks a model. Texts are split over the devices."""

    def __init__(
        self,
        model: LoadedLM,
        depths: Iterable[int],
        *,
        max_length: int,
        batch_size: int | None = None,
        exit: str | None = None,
        kv: str | None = None,
        draft: str | int | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """Lay the weights out over the devices.

        Args:
            depths: numbers of loops that a pass scores.
            max_length: tokens that the model may read at once; older ones are left out.
            batch_size: rows of a pass; None: about 16384 tokens, and 16 texts a device are written at the same time.
            exit, kv, draft: how texts are written; see `LoadedLM.generate`.
            devices: None: all of this process.

        Raises UserError for a model without a tokenizer or that sees what follows, and in a job of several processes.
        """
        if model.model.attention_mask == "full":
            raise UserError(
                "tasks ask how likely a text is to follow another, and model.attention_mask=full sees it; measure "
                "hidden tokens with `looplm eval`"
            )
        if model.tokenizer is None:
            raise UserError(
                "tasks are texts, and this model came without a tokenizer; put its tokenizer.model or tokenizer.json "
                "into its folder"
            )
        if jax.process_count() > 1:
            raise UserError(
                f"tasks are scored by one process, and this job has {jax.process_count()}; start it on one host"
            )
        self.model, self.encoding = model, Encoding(model.tokenizer)
        devices = jax.local_devices() if devices is None else devices
        mesh = build_mesh(Mesh(data=-1, fsdp=1), devices)
        lm = model.functional
        params = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), model.params, lm.abstract(mesh))
        self._scorer = DepthScorer(lm, params, mesh, depths)
        options = {"exit": exit, "kv": kv, "draft": draft}
        self._writing = Writing(model, params, mesh, ROWS if batch_size is None else batch_size, options)
        self._exit = exit
        self.shapes = Shapes(max_length, batch_size, len(devices))
        self._known: dict[bytes, dict[int, Answer]] = defaultdict(dict)
        self.num_passes = 0
        """Batches that were scored."""
        self._template: str | None = None

    @property
    def depths(self) -> tuple[int, ...]:
        """Numbers of loops that a pass scores, ascending."""
        return self._scorer.depths

    @property
    def num_programs(self) -> int:
        """How many programs score the present depths."""
        return self._scorer.num_programs

    def ask(self, depths: Iterable[int]) -> None:
        """Let passes score these depths too."""
        if not set(depths) <= set(self.depths):
            self._scorer = self._scorer.at((*self.depths, *depths))

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]], depth: int) -> list[Answer]:
        """Return how likely every continuation is after its context, at a depth.

        Raises UserError for a continuation that is longer than the model can read, and where tokens may leave early.
        """
        return self._score([self.encoding.pair(*pair) for pair in pairs], depth)

    def rolling(self, texts: Sequence[str], depth: int) -> list[float]:
        """Return the log-likelihood of every text, in nats, at a depth: of all its tokens, behind the token that begins
        a document. What is longer than the model can read is cut into stretches."""
        prefix, longest = self.encoding.prefix_id, self.shapes.max_length
        cut = [list(windows(self._text(text), prefix, longest)) for text in texts]
        scored = iter(self._score([span for spans in cut for span in spans], depth))
        return [sum(next(scored).log_likelihood for _ in spans) for spans in cut]

    def write(self, questions: Sequence[tuple[str, Mapping[str, Any]]], depth: int) -> list[str]:
        """Return what the model writes behind every context, given with its `generation_kwargs`, at a depth.

        A context that leaves too little room for the answer loses tokens from the left. Raises UserError as
        `read_asked`.
        """
        groups: dict[Asked, list[int]] = defaultdict(list)
        for number, (_, given) in enumerate(questions):
            groups[read_asked(given, self.shapes.max_length)].append(number)
        texts = [""] * len(questions)
        for asked, numbers in groups.items():
            room = self.shapes.max_length - asked.max_tokens
            prompts = [self._prompt(questions[number][0])[-room:] for number in numbers]
            for number, text in zip(numbers, self._writing(prompts, asked, depth), strict=True):
                texts[number] = text
        return texts

    def use_template(self, name: str | None = None) -> str:
        """Choose the chat template, and return it: the model's own, or one of those that the tokenizer has names for.

        Raises UserError where there is none.
        """
        tokenizer = self.model.tokenizer
        assert tokenizer is not None, "looked at above"
        if name is not None:
            if (found := tokenizer.chat_templates.get(name)) is None:
                names = ", ".join(sorted(tokenizer.chat_templates)) or "none"
                raise UserError(f"there is no chat template {name!r}; {tokenizer.path} has {names}")
            self._template = found
        if self._template is None:
            if self.model.chat is None:
                raise UserError(
                    "there is no chat template: the run's data was not built with --examples, and its tokenizer brings "
                    "none along; leave --apply_chat_template out"
                )
            self._template = self.model.chat.template
        return self._template

    def chat(self, messages: Sequence[Mapping[str, str]], *, asks: bool = True) -> str:
        """Return a chat as a text. asks: for the next answer; else the last message is one, and its end stays open.

        Raises UserError for what the template does not take.
        """
        template, tokenizer = self.use_template(), self.model.tokenizer
        assert tokenizer is not None, "looked at above"
        names = tokenizer.template_tokens
        try:
            if not asks:
                return open_answer(template, list(messages), names)
            return "".join(part.text for part in prompt_parts(template, list(messages), names))
        except BadTemplate as error:
            raise UserError(f"the chat template does not take the task's messages: {error}") from None

    def _text(self, text: str) -> Ids:
        ids = self.encoding.inside(text)
        return ids[1:] if ids[:1] == (self.encoding.prefix_id,) else ids

    def _prompt(self, context: str) -> Ids:
        return self.encoding.beginning(context) or (self.encoding.prefix_id,)

    def _score(self, spans: Sequence[Span], depth: int) -> list[Answer]:
        if self._exit is not None:
            raise UserError(
                f"exit={self._exit} is of texts that are written, and this task scores given ones after a "
                "fixed number of loops; leave it out"
            )
        self.ask([depth])
        spans = [fitted(span, self.shapes.max_length) for span in spans]
        keys = [_digest(span) for span in spans]
        new = {
            key: span
            for key, span in zip(keys, spans, strict=True)
            if span.num_scored and depth not in self._known[key]
        }
        for key, answers in zip(new, self._answer(list(new.values())), strict=True):
            self._known[key] = answers
        return [self._known[key][depth] if span.num_scored else NOTHING for key, span in zip(keys, spans, strict=True)]

    def _answer(self, spans: Sequence[Span]) -> list[dict[int, Answer]]:
        """Score spans at all depths."""
        log_TN = np.zeros((len(self.depths), len(spans)))
        greedy_TN = np.ones(log_TN.shape, bool)
        with bar("likelihoods", len(spans)) as count:
            for batch in batches(spans, self.shapes):
                found = self._scorer(batch)
                self.num_passes += 1
                is_target_BM = batch.span_BM >= 0
                span_N = batch.span_BM[is_target_BM]
                for row, (nll_BM, correct_BM) in enumerate(zip(*found, strict=True)):
                    np.subtract.at(log_TN[row], span_N, nll_BM[is_target_BM])
                    np.logical_and.at(greedy_TN[row], span_N, correct_BM[is_target_BM])
                count(len(set(span_N.tolist())))
        return [
            {depth: Answer(*pair) for depth, *pair in zip(self.depths, log_T.tolist(), greedy_T.tolist(), strict=True)}
            for log_T, greedy_T in zip(log_TN.T, greedy_TN.T, strict=True)
        ]


def _digest(span: Span) -> bytes:
    """What a span is known by: many long ones are not kept."""
    return hashlib.blake2b(np.array([span.num_scored, *span.ids], "<i4").tobytes(), digest_size=16).digest()
