"""A model with its weights, config and tokenizer, to be called from Python."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from looplm.api.arguments import require_shape, sequence_ids, token_ids
from looplm.api.result import Result
from looplm.checkpoint.adapters import Adapter
from looplm.checkpoint.adapters.base import to_official
from looplm.config.schema import (
    DecidedCrossEntropy,
    Distillation,
    ExpectedCrossEntropy,
    GateImprovement,
    Loop,
    Model,
    Objective,
    OwnCore,
    Run,
    SingleCore,
)
from looplm.data.tokenizer import Tokenizer
from looplm.errors import UserError
from looplm.infer.continuation import Continuation, Continuations
from looplm.infer.exit_rule import parse_exit
from looplm.infer.generate import Generation
from looplm.infer.lossy import check_kv
from looplm.infer.options import check_step_size, make_sampling, parse_contrast
from looplm.infer.prompt import Chat, Messages, ids_of_prompts
from looplm.infer.stop import Listener
from looplm.model.context import Context
from looplm.model.core import State
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, Params, compute_dtype
from looplm.model.report import Report, Reporting
from looplm.model.routing import Routing
from looplm.objective import build_objective, evaluate, with_frozen
from looplm.ops.attention import prefix_of, self_mask
from looplm.ops.cross_entropy import IGNORED
from looplm.ops.precision import at_least_fp32

WITH_ROUTING = Reporting(routing=True)


class LoadedLM:
    """A model on one device. All methods run eagerly and, but for `generate`, under `jax.jit`."""

    def __init__(
        self,
        model: Model,
        loop: Loop,
        objective: Objective,
        params: Params,
        *,
        run: Run | None = None,
        tokenizer: Tokenizer | None = None,
        template: str | None = None,
        step: int | None = None,
        adapter: Adapter | None = None,
        kv_file: Path | None = None,
    ):
        self.model, self.loop, self.objective, self.params = model, loop, objective, params
        self.run, self.tokenizer, self.step, self.adapter = run, tokenizer, step, adapter
        """What only a run directory has (run, step) or a folder may have, and how official names map, if any do."""
        self.kv_file = kv_file
        """Where a run keeps what KV policies cost this checkpoint, if that was measured."""
        self.chat = Chat(tokenizer, template) if tokenizer is not None and template is not None else None
        """How the model is asked when it was trained on examples: `template` wrote them."""
        self.functional = FunctionalLM(model)

    def __call__(
        self,
        tokens_BS: jax.Array,
        num_loops: int | None = None,
        num_detached: int = 0,
        initial_state: State | None = None,
        segments: jax.Array | None = None,
        ids: jax.Array | None = None,
        prefix: jax.Array | None = None,
    ) -> Result:
        """Runs the model and returns what every loop gives, float32.

        Args:
            tokens_BS: int ids (B, S).
            num_loops: loops in all; the run's when left out.
            num_detached: the first so many carry no gradient and are not returned.
            initial_state: (B, S, D), overrides the first state; or what `Result.state` is, to go on from it.
            segments: (B, S) document ids; tokens see their own document only. Left out: one document a row.
            ids: (B,) ids of the sequences, for a model that has a table of them (`model.front.ids`).
            prefix: (B, S) bool, tokens that all of their document see, for a model with `model.attention_mask=prefix`.
                Left out: none.

        Raises UserError for ids or shapes that do not fit.
        """
        reporting = Reporting(routing=True, router_logits=True)
        forward = self._forward(
            self.params, tokens_BS, num_loops, num_detached, initial_state, segments, ids, prefix, reporting=reporting
        )
        model, output = forward.model, forward("all")
        log_exit_RBS, report = output.log_exit_RBS, output.reports.get("block", Report())
        return Result(
            at_least_fp32(output.read),
            output.state,
            output.sequence_gate_BQ,
            output.gate_logits_RBS,
            None if log_exit_RBS is None else jnp.exp(log_exit_RBS),
            _of_loops(report.experts),
            _of_loops(report.heads),
            at_least_fp32(jnp.asarray(model.head_VD)),
            None if model.head_bias_V is None else at_least_fp32(jnp.asarray(model.head_bias_V)),
            num_detached,
            self.model.logit_softcap,
        )

    def loss_and_grads(
        self,
        tokens_BS: jax.Array,
        labels_BS: jax.Array,
        num_loops: int | None = None,
        num_detached: int = 0,
        initial_state: State | None = None,
        objective: Objective | None = None,
    ) -> tuple[jax.Array, Params]:
        """Returns (objective per scored token in nats, gradients in a tree like the parameters), float32.

        Args:
            tokens_BS, num_loops, num_detached, initial_state: as of a call.
            labels_BS: int (B, S); [b, s] is what token s should predict, and -100 is not scored.
            objective: what is minimised; the run's when left out.

        Raises UserError for ids, shapes or an objective that do not fit.
        """
        objective = objective or self.objective
        if (
            isinstance(objective, DecidedCrossEntropy | ExpectedCrossEntropy | GateImprovement)
            and self.model.exit_gate is None
        ):
            raise UserError(f"objective {objective.kind!r} needs an exit gate, and this model has none; give another")
        if isinstance(objective, Distillation):
            raise UserError("objective 'distill' needs the teacher of a training run; give another")
        loss = build_objective(objective)
        tokens_BS = token_ids(self.model, "tokens", tokens_BS)
        labels_BS = token_ids(self.model, "labels", labels_BS, but_for=IGNORED)
        require_shape("labels", labels_BS, tokens_BS.shape)

        def mean(params: Params) -> jax.Array:
            forward = self._forward(
                with_frozen(loss, self.functional, params),
                tokens_BS,
                num_loops,
                num_detached,
                initial_state,
                None,
                prefix=prefix_of(self.model, labels_BS, jnp.zeros_like(labels_BS)),
                with_capacity=True,
            )
            sums, _ = evaluate(loss, forward, labels_BS, jax.random.key(0))
            return sums.objective / jnp.maximum(sums.tokens, 1)

        return jax.value_and_grad(mean)(self.params)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int] | np.ndarray] | None = None,
        num_loops: int | None = None,
        exit: str | None = None,
        max_tokens: int = 64,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        *,
        kv: str | None = None,
        allow_lossy_kv: bool = False,
        messages: Messages | Sequence[Messages] | None = None,
        draft: str | int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: Sequence[str] = (),
        contrast: str | None = None,
        step_size: float = 1.0,
        warm_start: bool = False,
        prompt_exits: bool = False,
        batch_size: int | None = None,
        on_text: Callable[[int, str], None] | None = None,
        on_answer: Callable[[int, Continuation], None] | None = None,
    ) -> Continuations:
        """Returns what the model adds to every prompt: prompt and continuation together are the text. Of chats, the
        next answer of every one. Each is a `str` that also holds its new `tokens` and the `loops` each of them took;
        the list has `counts` of what was computed.

        Args:
            prompts: texts, in which the names of special tokens mean these tokens; or their ids, as they are.
            messages: instead of prompts: a chat as a list of {role, content}, or a list of chats, each to be answered.
                They are written as the examples of the training data were, in which nothing of a message is a special
                token.
            num_loops: the most loops of a token; the run's when left out.
            exit: when a token leaves before the last loop, e.g. `gate:0.9`, `kl:0.001,patience=2` or
                `latent:0.03|argmax:3` (see `looplm.infer.exit_rule`). None: at a fixed depth. Loops in which no token
                of the batch is left do not run.
            kv: which keys and values of earlier tokens a loop sees: `ragged` (the default), `each`, `last`, `first`,
                `anchor:K` or `ring:K`, and as what they are kept: `,bf16` or `,int8` (see `looplm.infer.cache`). All
                but the first two need less memory; `each` saves no loops. What `looplm eval --kv` found to cost much
                is refused, unless with allow_lossy_kv.
            temperature: 0 takes the likeliest token.
            seed: of what is drawn; or one for every prompt. An answer depends on it and on its own prompt, not on the
                other prompts.
            draft: how the model drafts for itself, `D` or `D:K` (see `looplm.infer.draft`); changes no token.
            top_k, top_p, min_p: what is drawn from; repetition_penalty: against tokens that are there (see
                `looplm.infer.sampling`).
            stop: an answer ends before the first of these texts.
            contrast: `LOOP:WEIGHT`, predictions of the last loop away from those after an earlier one (arXiv
                2609.24196).
            step_size: how far a loop goes from its state to the new one; 1 is all of the way.
            warm_start: a token starts from the last state of the token before it (arXiv 2502.05171).
            prompt_exits: tokens of the prompt leave as written ones do; else they run all loops.
            batch_size: prompts that are answered at the same time, the others wait; None: all.
            on_text: called with the number of a prompt and a piece of its answer as soon as it is certain.
            on_answer: called with the number of a prompt and its answer when it is whole.

        A character of which only the first bytes were written, when max_tokens are, is U+FFFD.
        """
        if self.tokenizer is None:
            raise UserError(
                "generate needs a tokenizer, and this model came without one; put a tokenizer.json into its folder"
            )
        rows = ids_of_prompts(self.tokenizer, self.chat, prompts, messages)
        largest = max(int(row.max()) for row in rows)
        if largest >= self.model.vocab_size:
            raise UserError(
                f"a prompt holds the id {largest} of {self.tokenizer.path}, and the model has {self.model.vocab_size}; "
                "the tokenizer is another model's"
            )
        for name, value, least in (("num_loops", self._loops(num_loops), 1), ("max_tokens", max_tokens, 1)):
            if value < least:
                raise UserError(f"{name}={value} must be at least {least}")
        loops = self._loops(num_loops)
        check_kv(kv, loops, compute_dtype(self.model), self.kv_file, exit=exit, allow=allow_lossy_kv)

        def text_of(number: int, tokens: np.ndarray) -> str:
            if messages is not None and self.chat is not None:
                return self.chat.answer(tokens)
            assert self.tokenizer is not None, "looked at above"
            return self.tokenizer.continuation(rows[number], tokens)

        listener = Listener(text_of, stop, on_text)
        generation = Generation(
            self.functional,
            self.params,
            rows,
            num_loops=loops,
            exit=parse_exit(exit, self.model),
            kv=kv,
            draft=draft,
            max_tokens=max_tokens,
            sampling=make_sampling(temperature, top_k, top_p, min_p, repetition_penalty),
            seed=seed,
            end_ids=[i for i in (self.tokenizer.eos_id, *(self.chat.end_ids if self.chat else ())) if i >= 0],
            num_ids=min(self.tokenizer.vocab_size, self.model.vocab_size),
            batch_size=batch_size,
            contrast=parse_contrast(contrast, loops),
            step_size=check_step_size(step_size),
            warm_start=warm_start,
            prompt_exits=prompt_exits,
            watch=listener.watch if stop or on_text else None,
        )
        answers: dict[int, Continuation] = {}
        for number, written in generation:
            answers[number] = Continuation(listener.end(number, written.tokens), written)
            if on_answer is not None:
                on_answer(number, answers[number])
        return Continuations([answers[number] for number in range(len(rows))], generation.counts)

    def official_tensors(self, tree: Params) -> dict[str, jax.Array]:
        """{official name: array} of a tree like the parameters: weights, or gradients.

        Raises UserError for a model that has no official names.
        """
        if self.adapter is None:
            raise UserError("official_tensors needs a model that was loaded from an official checkpoint")
        return to_official(self.adapter.tensors(self.model), tree)

    def _loops(self, num_loops: int | None) -> int:
        return self.loop.num_loops if num_loops is None else num_loops

    def _forward(
        self,
        params: Params,
        tokens_BS: jax.Array,
        num_loops: int | None,
        num_detached: int,
        initial_state: State | None,
        segments: jax.Array | None,
        ids: jax.Array | None = None,
        prefix: jax.Array | None = None,
        *,
        reporting: Reporting = WITH_ROUTING,
        with_capacity: bool = False,
    ) -> Forward:
        num_loops = self._loops(num_loops)
        tokens_BS = token_ids(self.model, "tokens", tokens_BS)
        if segments is not None:
            require_shape("segments", segments, tokens_BS.shape)
        if prefix is not None:
            require_shape("prefix", prefix, tokens_BS.shape)
            if self.model.attention_mask != "prefix":
                raise UserError(
                    f"prefix is given, and model.attention_mask={self.model.attention_mask} looks at none; leave it out"
                )
        if initial_state is not None:
            core, places = self.model.core, tokens_BS.shape[1] + self.model.front_places
            streams = core.streams if isinstance(core, SingleCore) else None
            of_token = (self.model.dim,) if streams is None else (streams.count, self.model.dim)
            for leaf in jax.tree.leaves(initial_state):
                # A core of a user's own knows the shapes of its state.
                own = jnp.shape(leaf)[2:] if isinstance(core, OwnCore) else of_token
                require_shape("initial_state", leaf, (tokens_BS.shape[0], places, *own))
        ids_B = None if ids is None else sequence_ids(self.model, ids, tokens_BS.shape[:1])
        if not 0 <= num_detached < num_loops:
            raise UserError(
                f"num_loops={num_loops}, num_detached={num_detached}: one loop must run after the detached ones"
            )
        model = self.functional.bind(params)
        segments_BS = jnp.zeros_like(tokens_BS) if segments is None else segments
        positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
        context = Context(
            positions_BS,
            self_mask(self.model, segments_BS, prefix),
            key=jax.random.key(0),
            sequence_B=jnp.arange(tokens_BS.shape[0]),
            ids_B=ids_B,
            reporting=reporting,
            with_capacity=with_capacity,
        )
        depth = Depth(num_loops - num_detached, num_detached=num_detached)
        return Forward(model, tokens_BS, context, depth, compute_dtype(self.model), start=initial_state)


def _of_loops(routing: Routing | None) -> jax.Array | None:
    return None if routing is None else jnp.moveaxis(jnp.asarray(routing.logits_BSE), 2, 1)
