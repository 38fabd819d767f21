"""A grid task of one's own: records in mine/, made by the script in docs/reasoners.md, and a model that sees all cells.

    looplm train examples/own_grids.py --workdir runs/mine

Rows of a grid are to be sorted; the cells are answered where they are.
"""

from looplm.config.schema import AddInjection, Data, Log, Loop, Model, Optim, Records, Run


def config() -> Run:
    return Run(
        num_steps=200,
        model=Model(
            vocab_size=10,
            dim=64,
            num_heads=4,
            hidden_dim=192,
            block_layers=1,
            injection=AddInjection(),
            attention_mask="full",
        ),
        loop=Loop(num_loops=6),
        optim=Optim(learning_rate=3e-3),
        data=Data(
            train=Records(folder="mine"),
            validation=Records(folder="mine", part="test"),
            sequence_length=16,
            batch_tokens=64 * 16,
        ),
        log=Log(every_steps=50),
    )
