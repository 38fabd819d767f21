from collections.abc import Callable

import pytest

from looplm.config.check import check, max_loops, trained_loops
from looplm.config.schema import Run
from looplm.errors import UserError

EXPERTS = {"kind": "moe", "num_experts": 8, "experts_per_token": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.dim": 18, "model.num_heads": 4},
            "model.num_heads=4 does not divide model.dim=18; use one of 1, 2, 3, 6, 9, 18 or set model.head_dim",
        ),
        (
            {"model.dim": 18, "model.num_heads": 6},
            "model.dim=18 over model.num_heads=6 is a head of 3 dims, which is odd; rotary positions need an even one",
        ),
        (
            {"sharding.keys": "ring"},
            "sharding.keys=ring is about sequences over devices; set mesh.context, or sharding.keys=auto",
        ),
        *(
            (
                {"sharding.keys": "ring", "mesh.context": 2, name: value},
                f"sharding.keys=ring has no device hold all scores, and {name}={value} does; "
                "use sharding.keys=gathered",
            )
            for name, value in (("model.positions", "relative"), ("model.attention_backend", "dense"))
        ),
        ({"model.head_dim": 5}, "model.head_dim=5 is odd; rotary positions need an even one"),
        (
            {"model.attention": {"kind": "mixture", "num_experts": 2, "experts_per_token": 3}},
            "model.attention.experts_per_token=3 is more than num_experts=2; use at most that",
        ),
        (
            {"model.attention": {"kind": "mixture", "num_experts": 1, "experts_per_token": 1, "entropy_weight": 0.1}},
            "model.attention.entropy_weight=0.1 has no part in num_experts=1, where nothing is chosen; set it to 0, or "
            "use more experts",
        ),
        (
            {"model.rope.fraction": 0.2},
            "model.rope.fraction=0.2 of a head of 8 dims leaves no pair to turn; use more, e.g. 1.0",
        ),
        (
            {"model.rope.scaling": {"kind": "llama3", "factor": 8, "low_frequency_factor": 4, "original_length": 64}},
            "model.rope.scaling.low_frequency_factor=4.0 is not below high_frequency_factor=4.0, and the ramp lies "
            "between them; use e.g. 1.0 and 4.0",
        ),
        (
            {"model.num_heads": 4, "model.num_kv_heads": 3},
            "model.num_kv_heads=3 does not divide model.num_heads=4; use one of 1, 2, 4",
        ),
        (
            {"model.value_embedding": {"gate_channels": 17}, "model.dim": 16},
            "model.value_embedding.gate_channels=17 is more than model.dim=16; use at most that",
        ),
        *(
            ({"model.block_layers": 2, "model.feed_forward": EXPERTS | changes}, f"model.feed_forward.{message}")
            for changes, message in (
                ({"experts_per_token": 9}, "experts_per_token=9 is more than num_experts=8; use at most that"),
                ({"dense_layers": [0, 3]}, "dense_layers=[3]: the block has layers 0 to 1; take them out"),
                ({"dense_layers": [0, 1]}, "dense_layers=[0, 1] leaves no layer with experts; use kind=swiglu"),
                ({"dense_layers": [1, 1]}, "dense_layers=[1, 1] must be ascending, each layer once"),
                ({"loop_biases": 4}, "loop_biases=4 is more than the 3 loops that run; use at most that"),
                (
                    {"router_loops": 4},
                    "router_loops=4 is more than the 3 loops that run, and the rest would not learn; use at most 3",
                ),
                (
                    {"router_loops": 2, "loop_biases": 2},
                    "router_loops=2 gives every loop a router, and loop_biases=2 is for one that loops share; "
                    "leave loop_biases at 0",
                ),
                (
                    {"balance": {"auxiliary_over": "batch"}},
                    "balance.auxiliary_over=batch has no part in auxiliary_weight=0; leave it at sequence",
                ),
                (
                    {"capacity_factor": 2.0, "backend": "tokamax"},
                    "backend=tokamax has no part in capacity_factor=2.0, where all experts have as many places; "
                    "leave it at auto",
                ),
                (
                    {"experts_per_token": 8, "balance": {"bias_rate": 0.1}},
                    "experts_per_token=8 uses every expert for every token: there is nothing to balance or to limit; "
                    "use fewer",
                ),
            )
        ),
        *(
            ({"model.core": {"kind": "two_speed", "inner_loops": 2} | core} | more, fault)
            for core, more, fault in (
                (
                    {"inner_backprop": 3},
                    {},
                    "model.core.inner_backprop=3 is more than the 2 of model.core.inner_loops; use at most that",
                ),
                (
                    {"inner_backprop": []},
                    {},
                    "model.core.inner_backprop=[] says it of no loop; use e.g. [1], or null for all inner loops",
                ),
                (
                    {"inner_loops": 0, "high_layers": 1},
                    {},
                    "model.core.high_layers has no part in model.core.inner_loops=0, where the low state stays as it "
                    "is; use more inner loops, or leave it out",
                ),
                (
                    {"inner_backprop": [1, 2]},
                    {
                        "loop.depth": {"kind": "uniform", "max_loops": 4},
                        "loop.depth_per": "sequence",
                    },
                    "model.core.inner_backprop=[1, 2] differs from loop to loop, and loop.depth_per=sequence has "
                    "sequences at different loops at a time; use one number, or loop.depth_per=batch",
                ),
                (
                    {},
                    {"model.feed_forward": EXPERTS},
                    "model.core=two_speed calls a block several times a loop, and experts are balanced by one call; "
                    "use a dense model.feed_forward and model.attention, or model.core=single",
                ),
                (
                    {},
                    {"model.value_embedding": {"gate_channels": 1}},
                    "model.value_embedding counts layers of one block, and model.core=two_speed may have two; "
                    "leave model.value_embedding out",
                ),
                (
                    {},
                    {"model.residual_step": "inverse_loops"},
                    "model.residual_step=inverse_loops counts loops of one block; use one with model.core=two_speed",
                ),
            )
        ),
        *(
            ({"model.front": {"zeros": 2}} | more, fault)
            for more, fault in (
                ({"model.front": {}}, "model.front has no places; give it ids, learned or zeros, or leave it out"),
                (
                    {"mesh.tensor": 2},
                    "model.front needs whole sequences on a device, and mesh.tensor splits them; use mesh.tensor=1",
                ),
                (
                    {"model.positions": {"kind": "learned", "length": 64}, "data.sequence_length": 64},
                    "model.positions.length=64 is less than data.sequence_length=64 and the 2 places of model.front; "
                    "use at least 66",
                ),
                (
                    {"model.value_embedding": {"gate_channels": 1}},
                    "model.value_embedding is of tokens, and places of model.front are none; leave one of them out",
                ),
            )
        ),
        *(
            (
                {name: value, "mesh.context": 2},
                f"{told} needs whole sequences on a device, and mesh.context splits them; use mesh.context=1",
            )
            for name, value, told in (
                ("model.feed_forward", {"kind": "conv_swiglu"}, "model.feed_forward=conv_swiglu"),
                ("model.sequence_gate", {}, "model.sequence_gate"),
            )
        ),
        (
            {"model.coda_feed_forward": EXPERTS},
            "model.coda_feed_forward=moe has no layer to apply to: model.coda_layers=0; leave it at null",
        ),
        (
            {
                "model.prelude_layers": 1,
                "model.block_layers": 2,
                "model.feed_forward": EXPERTS | {"dense_layers": [1]},
            },
            "model.feed_forward.dense_layers=[1]: the prelude has layers 0 to 0; set model.prelude_feed_forward",
        ),
        (
            {"model.coda_layers": 1, "model.coda_feed_forward": EXPERTS | {"loop_biases": 2}},
            "model.coda_feed_forward.loop_biases=2: the coda runs once; leave it at 0",
        ),
        (
            {"model.coda_layers": 1, "model.coda_feed_forward": EXPERTS | {"router_loops": 2}},
            "model.coda_feed_forward.router_loops=2: the coda runs once; leave it at null",
        ),
        (
            {"model.attention_loops": 2, "model.adapter": {"rank": 2}},
            "model.attention_loops=2 and model.adapter both give loops parameters of their own; leave one of them out",
        ),
        (
            {"model.qk_norm_over": "all_heads"},
            "model.qk_norm_over=all_heads is for a norm with a scale; "
            "set model.qk_norm=True and model.qk_norm_scale=True, or leave it at head",
        ),
        (
            {"data.batch_tokens": 130},
            "data.batch_tokens=130 is no multiple of data.sequence_length=16; use 128",
        ),
        ({"data.batch_tokens": 5}, "data.batch_tokens=5 is no multiple of data.sequence_length=16; use 16"),
        (
            {"data.accumulation_steps": 3},
            "data.accumulation_steps=3 does not divide the 8 sequences of a batch; use one of 1, 2, 4, 8",
        ),
        (
            {"loop.depth": {"kind": "uniform", "min_loops": 5, "max_loops": 2}},
            "loop.depth.min_loops=5 is above loop.depth.max_loops=2; swap them",
        ),
        ({"loop.backprop_loops": 4}, "loop.backprop_loops=4 is more than the 3 loops that run; use at most that"),
        (
            {"loop.backprop_loops": 3, "loop.depth": {"kind": "uniform", "max_loops": 2}},
            "loop.backprop_loops=3 is more than the 2 loops that run; use at most that",
        ),
        (
            {"model.exit_gate": None},
            "objective.kind=expected needs an exit gate; set model.exit_gate={} or objective=final",
        ),
        (
            {"optim.schedule.warmup_steps": 3},
            "optim.schedule.warmup_steps=3 leaves no step of num_steps=3 for the rest; "
            "set optim.schedule.warmup_steps=0, or more num_steps",
        ),
        (
            {"checkpoint.best_metric": "eval/loss_depth_2"},
            "checkpoint.best_metric=eval/loss_depth_2 has no part in checkpoint.keep_best=0; set that to 1 or more, or "
            "leave it out",
        ),
        (
            {"checkpoint.keep_best": 1},
            "checkpoint.keep_best=1 needs evaluations to go by; set eval.every_steps, e.g. 2",
        ),
        (
            {"checkpoint.keep_best": 1, "eval.every_steps": 2, "checkpoint.every_steps": None},
            "checkpoint.keep_best=1 needs saves at steps that are evaluated; set checkpoint.every_steps to a multiple "
            "of eval.every_steps",
        ),
        (
            {"checkpoint.keep_best": 1, "eval.every_steps": 2, "eval.depths": [1, 2]},
            "checkpoint.best_metric=eval/loss_depth_3 is not measured; use one of eval/loss_depth_1, "
            "eval/loss_depth_2, eval/bpb_depth_1, eval/bpb_depth_2",
        ),
        (
            {"loop.depth_per": "sequence"},
            "loop.depth_per=sequence has nothing to draw with loop.depth.kind=fixed; leave it at batch",
        ),
        (
            {"loop.depth": {"kind": "scheduled", "loops": {0: 1, 3: 3}}},
            "loop.depth.loops={0: 1, 3: 3} has an entry at step 3, and num_steps=3 ends before it; "
            "take it out, or train longer",
        ),
        (
            {"model.state_init": "zeros"},
            "model.injection=none with model.state_init=zeros leaves the tokens out of the model; "
            "use another injection, or model.state_init=input",
        ),
        (
            {"model.state_init": "embedding", "model.prelude_layers": 1},
            "model.injection=none with model.state_init=embedding leaves the prelude out of the model; "
            "use another injection, or model.state_init=input",
        ),
        (
            {"model.norm_before_coda": True, "model.final_norm": False},
            "model.norm_before_coda=True applies the final norm, and model.final_norm=False; set that to True",
        ),
        (
            {"model.attention_mask": "prefix", "data.train": {"kind": "sudoku", "size": 4, "in_place": True}},
            "model.attention_mask=prefix lets the tokens before an answer see one another, and data that are answered "
            "in place have none; use model.attention_mask=full",
        ),
        (
            {"model.attention_mask": "prefix", "mesh.context": 2},
            "model.attention_mask=prefix needs whole sequences on a device, and mesh.context=2 splits them; "
            "use mesh.context=1",
        ),
        (
            {"loop.inner_growth": {"steps": 2}},
            "loop.inner_growth.steps=2 is of inner loops, and model.core=single has none; use loop.backprop_growth, or "
            "model.core=two_speed",
        ),
        (
            {"model.attention_mask": "full"},
            "model.attention_mask=full lets a token see the next one, which it has to predict; "
            "use model.attention_mask=causal, or data.masking, or records, or tasks with in_place=true, only",
        ),
        (
            {"data.masking": {"mask_token": 3}},
            "data.masking hides tokens that are found again from both sides, and model.attention_mask=causal shows "
            "one; use model.attention_mask=full, or data.masking=null",
        ),
        (
            {"model.attention_mask": "full", "data.masking": {"mask_token": 512}, "model.vocab_size": 512},
            "data.masking.mask_token=512 has no row in model.vocab_size=512; use a token below that, or at least 513 "
            "of them",
        ),
        (
            {"model.attention_mask": "full", "data.masking": {"mask_token": 3, "random_share": 0.5}},
            "data.masking.masked_share=0.8 and random_share=0.5 are more than all of the chosen places; use shares of "
            "at most 1 together",
        ),
        (
            {
                "model.attention_mask": "full",
                "data.masking": {"mask_token": 3},
                "data.train": {"kind": "sudoku", "size": 4, "in_place": True},
                "data.validation": None,
            },
            "data.masking hides tokens of texts, and sudoku has answers of its own; use token datasets only, or "
            "data.masking=null",
        ),
        (
            {"objective": "gate", "loop.backprop_loops": 1},
            "objective.kind=gate compares a loop with the next, and the gradient window holds 1 loop; "
            "use more of loop.num_loops and loop.backprop_loops",
        ),
        (
            {"objective.sampled_heads": 3, "loop.backprop_loops": 2},
            "objective.sampled_heads=3 is more than the 2 loops that are read; use at most 2, or null for all",
        ),
        (
            {"model.exit_gate": None, "objective": "final", "optim.gate_rate": 0.5},
            "optim.gate_rate=0.5 has no exit gate to apply to; set model.exit_gate={}, or leave it at 1.0",
        ),
        (
            {"objective": "gate", "optim.gate_rate": 0},
            "optim.gate_rate=0 freezes the gate, and objective.kind=gate trains nothing else; use e.g. 1.0",
        ),
        (
            {"optim.injection_rate": 0.1},
            "optim.injection_rate=0.1: model.injection=none has no parameters; leave it at 1.0",
        ),
        (
            {"optim.injection_rate": 0.1, "model.injection": "diagonal", "objective": "gate"},
            "optim.injection_rate=0.1: objective.kind=gate freezes it; leave it at 1.0",
        ),
        (
            {"optim.ema_decay": 0},
            "optim.ema_decay=0.0 keeps nothing but the newest weights; use e.g. 0.999, or null for no average",
        ),
        (
            {"optim.ema_decay": 1},
            "optim.ema_decay=1.0 never leaves the first weights; use e.g. 0.999, or null for no average",
        ),
        (
            {"optim.schedule.wsd_fraction": 0.5},
            "optim.schedule.wsd_fraction=0.5 has no part in decay=cosine; "
            "set optim.schedule.decay=wsd, or leave it at 0.2",
        ),
        (
            {"optim.schedule.decay": "constant", "optim.schedule.final_fraction": 0.0},
            "optim.schedule.final_fraction=0.0 has no part in decay=constant; "
            "set another optim.schedule.decay, or leave it at 0.1",
        ),
        (
            {"data.train": "here/../data", "data.validation": "data"},
            "data.validation=data is the folder of data.train=here/../data: nothing would be held out; "
            "give other data, or data.validation=null",
        ),
        (
            {"data.train": "p_hop", "data.validation": {"kind": "p_hop", "num_examples": 10}},
            "data.validation=p_hop has the examples of data.train: nothing would be held out; "
            "give data.validation another seed",
        ),
        (
            {"data.train": "facts", "data.validation": "facts"},
            "data.validation=facts has the examples of data.train: nothing would be held out; "
            "give data.validation another part",
        ),
        ({"data.train": []}, "data.train=[] holds no source; name at least one"),
        (
            {"data.train": [{"name": "a", "data": "x"}, {"name": "a", "data": "y"}]},
            "data.train has two sources of one name, among a, a; every name needs to be another",
        ),
        (
            {"data.train": [{"name": "a", "data": "x", "weight": {0: 1.0, 3: 2.0}}]},
            "data.train has a weight from step 3 on, and num_steps=3 ends before it; take it out, or train longer",
        ),
        (
            {"data.train": [{"name": "a", "data": "x", "weight": {0: 1.0, 2: 0.0}}]},
            "data.train gives no source a weight at step 2; give one of a more than 0",
        ),
        (
            {"data.train": {"kind": "maze", "min_path": 9, "max_path": 5}},
            "min_path=9 of the mazes is above max_path=5; swap them",
        ),
        (
            {"data.train": {"kind": "graphs", "min_path": 7}},
            "min_path=7 of the graphs is above max_path=6; swap them",
        ),
        (
            {"data.train": {"kind": "chains", "min_hops": 9, "max_hops": 5}},
            "min_hops=9 of the chains is above max_hops=5; swap them",
        ),
    ],
)
def test_what_does_not_fit_comes_with_its_remedy(tiny_run: Callable[..., Run], changes: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        check(tiny_run(**changes))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.attention.length": 60},
            "model.attention.length=60 must be the 64 places of data.sequence_length; use 64",
        ),
        (
            {"model.attention_mask": "causal"},
            "model.attention=sequence_mlp lets every token see all; set model.attention_mask=full and no "
            "model.attention_window",
        ),
        (
            {"model.norm": "rms"},
            "model.norm=rms has a scale for every channel, and norms around model.attention=sequence_mlp are over "
            "places; use model.norm=unit",
        ),
        (
            {"model.qk_norm": True},
            "model.qk_norm has no part in model.attention=sequence_mlp, which has no heads; leave it out",
        ),
    ],
)
def test_what_does_not_fit_a_mixture_over_places(tiny_run: Callable[..., Run], changes: dict, message: str) -> None:
    """Beside what is wrong with tokens that see all."""
    fits = {
        "model.attention": {"kind": "sequence_mlp", "length": 64},
        "data.sequence_length": 64,
        "model.norm": "unit",
        "model.attention_mask": "full",
    }
    with pytest.raises(UserError) as error:
        check(tiny_run(**fits))
    assert "sequence_mlp" not in str(error.value)
    with pytest.raises(UserError) as error:
        check(tiny_run(**fits | changes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.dim": 18, "model.num_heads": 4, "model.head_dim": 6},
        {"model.num_heads": 4, "model.num_kv_heads": 1},
        {"data.accumulation_steps": 8},
        {"loop.depth": {"kind": "uniform", "min_loops": 2, "max_loops": 2}},
        {"loop.backprop_loops": 3},
        {"loop.backprop_loops": 5, "loop.depth": {"kind": "uniform", "max_loops": 5}},
        {"model.exit_gate": None, "objective": "final"},
        {"objective": "final"},
        {"optim.schedule.warmup_steps": 0},
        {"loop.depth_per": "sequence", "loop.depth": {"kind": "uniform", "max_loops": 2}},
        {"loop.depth": {"kind": "scheduled", "loops": {0: 1, 9: 3}, "interpolate": True}},
        {"model.state_init": "zeros", "model.injection": "add"},
        {"model.state_init": "embedding"},
        {"objective": "gate", "loop.backprop_loops": 2},
        {"objective.sampled_heads": 3},
        {"optim.gate_rate": 0.5},
        {"optim.injection_rate": 0.1, "model.injection": "concat"},
        {"optim.ema_decay": 0.999},
        {"optim.schedule.decay": "wsd", "optim.schedule.wsd_fraction": 0.5},
        {"data.validation": None},
        {"data.train": "p_hop", "data.validation": {"kind": "p_hop", "seed": 1}},
        {"data.train": [{"name": "a", "data": "x"}, {"name": "b", "data": "s3://bucket/y", "weight": {2: 1.0}}]},
        {"data.train": {"kind": "sudoku", "in_place": True}, "data.validation": None, "model.attention_mask": "full"},
    ],
)
def test_what_fits_passes_unchanged(tiny_run: Callable[..., Run], changes: dict) -> None:
    run = tiny_run(**changes)
    assert check(run) is run


def test_all_faults_are_told_at_once(tiny_run: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match=r"batch_tokens=130 .*; .*warmup_steps=9"):
        check(tiny_run(**{"data.batch_tokens": 130, "optim.schedule.warmup_steps": 9}))


def test_the_largest_depth(tiny_run: Callable[..., Run]) -> None:
    assert max_loops(tiny_run()) == 3
    assert max_loops(tiny_run(**{"loop.depth": {"kind": "uniform", "max_loops": 7}})) == 7


def test_the_most_loops_with_gradient(tiny_run: Callable[..., Run]) -> None:
    assert trained_loops(tiny_run()) == 3
    assert trained_loops(tiny_run(**{"loop.backprop_loops": 2})) == 2
    assert trained_loops(tiny_run(**{"loop.depth": "poisson", "loop.backprop_loops": 9})) == 9
    assert trained_loops(tiny_run(**{"loop.depth": "poisson"})) is None
