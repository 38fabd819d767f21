"""A looped Llama whose settings are those that llama.cpp runs: a stack of layers that is stored once and runs R times,
with one norm at the end of every loop (its architecture `nanbeige`, arXiv 2607.22083).

    looplm train configs/edge.py:tiny --workdir runs/edge          (on the data of `looplm demo`; minutes on a CPU)
    looplm convert gguf runs/edge edge.gguf --type q8_0
    llama-cli -m edge.gguf -p "Once upon"

`60m` has 61,354,752 parameters in 8 layers that run four times: 38 MB in 4 bits (q4_0). Widths are multiples of 256,
which llama.cpp's types of few bits ask for. No gate: llama.cpp runs all loops.
"""

from looplm.config.load import override
from looplm.config.schema import Checkpoint, Data, FinalCrossEntropy, Loop, Model, NoInjection, NormalInit, Optim, Run
from looplm.config.tiny import TINY_RUN


def config_60m() -> Run:
    return Run(
        num_steps=60_000,
        model=Model(
            vocab_size=8192,
            dim=768,
            num_heads=12,
            num_kv_heads=4,
            hidden_dim=2304,
            block_layers=8,
            injection=NoInjection(),
            norm_at_loop_end=True,
            final_norm=False,
            tie_embeddings=True,
            init=NormalInit(),
        ),
        loop=Loop(num_loops=4),
        objective=FinalCrossEntropy(),
        optim=Optim(learning_rate=1e-3),
        data=Data(train="data/train", sequence_length=1024, batch_tokens=256 * 1024),
        checkpoint=Checkpoint(every_steps=1000),
    )


def config_tiny() -> Run:
    changes = {
        "model.dim": 256,
        "model.num_heads": 4,
        "model.num_kv_heads": 2,
        "model.hidden_dim": 512,
        "model.block_layers": 2,
        "optim.learning_rate": 2e-3,
        "optim.schedule.warmup_steps": 30,
    }
    return override(config_60m(), TINY_RUN | changes)
