"""Coconut (arXiv 2412.06769): written steps of reasoning that become latent thoughts, one more in every stage.

    looplm train configs/coconut.py:tiny --workdir runs/coconut          (graphs that are made on the way; on a CPU)
    looplm eval runs/coconut

`prosqa` has the layers, widths and vocabulary of GPT-2 small, and the stages of the authors' ProsQA run: a stage of 5
epochs of 17,886 questions for written steps alone, six for one more latent each, and the last one goes on to epoch 50.
In a stage, examples and loops change with the step; what is held out has no written steps.
Departures: no start from GPT-2's weights; rotary positions in place of its table of 1024, so 123,655,680
parameters, which are the 124,442,112 of GPT-2 with the authors' three marks without that table; questions of symbols
and not of words; no dropout; the optimizer is not reset between stages.
"""

from looplm.config.load import override
from looplm.config.schema import (
    GELU,
    AdamW,
    Checkpoint,
    Data,
    DenseAttention,
    FinalCrossEntropy,
    Graphs,
    LatentFeedbackCore,
    Loop,
    Model,
    NormalInit,
    Optim,
    Run,
    Schedule,
    ScheduledDepth,
    Source,
)


def _staged(graphs: Graphs, *, steps_per_stage: int, held_out: int) -> tuple[Data, Loop]:
    """Make stages 0 to `max_path`, one after the other; the last one has no end."""
    last, starts = graphs.max_path, [stage * steps_per_stage for stage in range(graphs.max_path + 1)]
    sources = tuple(
        Source(
            name=f"stage{stage}",
            data=graphs.model_copy(update={"stage": stage}),
            weight={start: 1.0} | ({starts[stage + 1]: 0.0} if stage < last else {}),
        )
        for stage, start in enumerate(starts)
    )
    unseen = graphs.model_copy(update={"stage": last, "seed": graphs.seed + 1, "num_examples": held_out})
    length = 3 * graphs.max_facts + 3 * last + 7
    data = Data(train=sources, validation=unseen, sequence_length=length, batch_tokens=128 * length)
    loops = {start: stage * graphs.latents_per_step + 1 for stage, start in enumerate(starts)}
    return data, Loop(num_loops=loops[starts[-1]], depth=ScheduledDepth(loops=loops))


def config_prosqa() -> Run:
    data, loop = _staged(Graphs(num_examples=17_886, pad_latents=True), steps_per_stage=700, held_out=500)
    return Run(
        num_steps=7000,
        model=Model(
            vocab_size=50_260,
            dim=768,
            num_heads=12,
            hidden_dim=3072,
            block_layers=12,
            feed_forward=GELU(bias=True),
            attention=DenseAttention(bias=True),
            qk_bias=True,
            norm="layer",
            norm_eps=1e-5,
            norm_at_loop_end=True,
            final_norm=False,
            core=LatentFeedbackCore(token=Graphs.LATENT),
            tie_embeddings=True,
            init=NormalInit(std=0.02),
        ),
        loop=loop,
        objective=FinalCrossEntropy(),
        optim=Optim(
            learning_rate=1e-4,
            optimizer=AdamW(beta2=0.999, weight_decay=0.01),
            schedule=Schedule(decay="constant", warmup_steps=0),
        ),
        data=data,
        checkpoint=Checkpoint(every_steps=700),
    )


def config_tiny() -> Run:
    graphs = Graphs(things=8, max_facts=12, min_path=2, max_path=3, pad_latents=True)
    data, loop = _staged(graphs, steps_per_stage=400, held_out=500)
    changes = {
        "num_steps": 2000,
        "model.vocab_size": 14,
        "model.dim": 64,
        "model.num_heads": 4,
        "model.hidden_dim": 256,
        "model.block_layers": 2,
        "optim.learning_rate": 2e-3,
        "optim.schedule.warmup_steps": 30,
        "checkpoint.every_steps": 400,
    }
    return override(config_prosqa().model_copy(update={"data": data, "loop": loop}), changes)
