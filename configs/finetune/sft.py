"""All weights of a model learn the answers of chats (SFT); with a dataset of plain texts, continued pretraining.

    looplm data build --input chats.jsonl --tokenizer MODEL/tokenizer.json --out data/chats --examples chat \\
        --validation-fraction 0.01
    looplm train configs/finetune/sft.py --workdir runs/tuned --set model=from:MODEL --set data.train=data/chats/train

MODEL is a run or an official folder, whose model and number of loops are taken; the model here stands in its place.
The rates are those of Ouro's stage (arXiv 2510.25741, 4.3): Adam at 2e-5, cosine. `objective=expected` trains the exit
gate too. Parts are left alone by `optim.frozen`, e.g. `["embedding", "prelude"]`. On a CPU, after `looplm demo`:

    looplm data build --input chats.jsonl --tokenizer runs/demo/run/tokenizer.model --out runs/demo/chats \\
        --examples chat --template "{role}: {content}\\n" --validation-fraction 0.05
    looplm train configs/finetune/sft.py:tiny --workdir runs/tuned --set model=from:runs/demo/run
"""

from looplm.config.load import override
from looplm.config.schema import AdamW, Checkpoint, Data, Loop, Model, Optim, Run, Schedule
from looplm.config.tiny import TINY_RUN


def config() -> Run:
    return Run(
        num_steps=1000,
        model=Model(vocab_size=49_152, dim=2048, num_heads=16, hidden_dim=5632, block_layers=24),
        loop=Loop(num_loops=4, remat="layer"),
        optim=Optim(
            learning_rate=2e-5,
            optimizer=AdamW(beta2=0.95, weight_decay=0.1),
            schedule=Schedule(warmup_steps=30, decay="cosine"),
        ),
        data=Data(train="data/chats/train", sequence_length=4096, batch_tokens=2**18),
        checkpoint=Checkpoint(every_steps=200),
    )


def config_tiny() -> Run:
    changes = {
        "num_steps": 200,
        "model": Model(vocab_size=2048, dim=128, num_heads=4, num_kv_heads=2, hidden_dim=384, block_layers=1),
        "optim.learning_rate": 1e-3,
        "optim.schedule.warmup_steps": 10,
        "loop.remat": "none",
        "data.train": "runs/demo/chats/train",
        "data.validation": "runs/demo/chats/validation",
    }
    return override(config(), TINY_RUN | changes)
