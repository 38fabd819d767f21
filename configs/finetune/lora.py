"""An adapter learns the answers of chats beside a model's own weights, which stay as they are (LoRA, arXiv 2106.09685).

    looplm data build --input chats.jsonl --tokenizer MODEL/tokenizer.json --out data/chats --examples chat \\
        --validation-fraction 0.01
    looplm train configs/finetune/lora.py --workdir runs/lora --set model=from:MODEL --set data.train=data/chats/train
    looplm generate runs/lora --chat
    looplm adapter merge runs/lora runs/merged           (one model, which `looplm convert export` writes)
    looplm adapter export runs/lora lora-peft            (for PyTorch, beside the official MODEL)

MODEL is a run or an official folder, whose model and number of loops are taken; the model here stands in its place.
`looplm compile` says what is saved. All loops share the adapter; `loops` has one for each, which neither merges nor
goes to PEFT. On a CPU, with runs/demo/chats as in configs/finetune/sft.py:

    looplm train configs/finetune/lora.py:tiny --workdir runs/lora --set model=from:runs/demo/run
"""

from looplm.config.load import override
from looplm.config.schema import AdamW, Checkpoint, Data, Loop, LoRA, Model, Optim, Run, Schedule
from looplm.config.tiny import TINY_RUN


def config() -> Run:
    return Run(
        num_steps=1000,
        model=Model(
            vocab_size=49_152,
            dim=2048,
            num_heads=16,
            hidden_dim=5632,
            block_layers=24,
            adapter=LoRA(targets=("attention", "feed_forward"), rank=16, alpha=32.0),
        ),
        loop=Loop(num_loops=4, remat="layer"),
        optim=Optim(
            learning_rate=2e-4,
            optimizer=AdamW(weight_decay=0.0),
            schedule=Schedule(warmup_steps=30, decay="cosine"),
        ),
        data=Data(train="data/chats/train", sequence_length=4096, batch_tokens=2**18),
        checkpoint=Checkpoint(every_steps=200),
    )


def config_tiny() -> Run:
    changes = {
        "num_steps": 200,
        "model.vocab_size": 2048,
        "model.dim": 128,
        "model.num_heads": 4,
        "model.hidden_dim": 384,
        "model.block_layers": 1,
        "optim.learning_rate": 5e-3,
        "optim.schedule.warmup_steps": 10,
        "loop.remat": "none",
        "data.train": "runs/demo/chats/train",
        "data.validation": "runs/demo/chats/validation",
    }
    return override(config(), TINY_RUN | changes)
