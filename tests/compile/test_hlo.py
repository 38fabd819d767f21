"""The reader of compiled programs: hand-made text with known answers."""

import numpy as np
import pytest

from looplm.compile.collectives import collectives, device_groups
from looplm.compile.hlo import Module, array_bytes, elements

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_condition (p.1: (s32[], f32[8,4])) -> pred[] {
  %p.1 = (s32[], f32[8,4]{1,0:T(8,128)}) parameter(0)
  %three = s32[]{:T(128)} constant(3)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt.1 = pred[] compare(%i.1, %three), direction=LT
}

%inner_body (p.2: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p.2 = (s32[], /*index=1*/f32[8,4]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %x.2 = f32[8,4]{1,0:T(8,128)} get-tuple-element(%p.2), index=1
  %reduced = f32[8,4]{1,0} all-reduce(%x.2), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  ROOT %t.2 = (s32[], f32[8,4]) tuple(%x.2, %reduced)
}

%all-reduce-scatter (input: f32[8,4]) -> f32[4,4] {
  %input = f32[8,4] parameter(0)
  %whole = f32[8,4] all-reduce(%input), channel_id=2, replica_groups=mesh['d'=4,'t'=2] {'t'}, to_apply=%add
  ROOT %part = f32[4,4] dynamic-slice(%whole)
}

%outer_condition (p.3: (s32[], f32[8,4], s32[])) -> pred[] {
  %p.3 = (s32[], f32[8,4], s32[]) parameter(0)
  %i.3 = s32[] get-tuple-element(%p.3), index=0
  %n.3 = s32[] get-tuple-element(%p.3), index=2
  ROOT %lt.3 = pred[] compare(%i.3, %n.3), direction=LT
}

%outer_body (p.4: (s32[], f32[8,4], s32[])) -> (s32[], f32[8,4], s32[]) {
  %p.4 = (s32[], f32[8,4], s32[]) parameter(0)
  %zero.4 = s32[] constant(0)
  %x.4 = f32[8,4] get-tuple-element(%p.4), index=1
  %init.4 = (s32[], f32[8,4]) tuple(%zero.4, %x.4)
  %loop.4 = (s32[], f32[8,4]) while(%init.4), condition=%inner_condition, body=%inner_body
  %scattered = f32[4,4] fusion(%x.4), kind=kCustom, calls=%all-reduce-scatter
  ROOT %t.4 = (s32[], f32[8,4], s32[]) tuple(%zero.4, %x.4, %zero.4)
}

%started (p.5: bf16[8,4]) -> bf16[64,4] {
  %p.5 = bf16[8,4] parameter(0)
  ROOT %gather.5 = bf16[64,4] all-gather(%p.5), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%on_other_core (p.6: f16[8,4]) -> f16[16,4] {
  %p.6 = f16[8,4] parameter(0)
  ROOT %gather.6 = f16[16,4] all-gather(%p.6), channel_id=7, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
}

%handed_over (p.7: f16[8,4]) -> f16[16,4] {
  %p.7 = f16[8,4] parameter(0)
  ROOT %call.7 = f16[16,4] custom-call(%p.7), custom_call_target="other", called_computations={%on_other_core}
}, execution_thread="sparsecore"

ENTRY %main (x: f32[8,4], w: bf16[8,4], n: s32[], h: f16[8,4]) -> f32[8,4] {
  %x = f32[8,4] parameter(0)
  %w = bf16[8,4] parameter(1)
  %n = s32[] parameter(2)
  %h = f16[8,4] parameter(3)
  %elsewhere = ((f16[8,4]), f16[16,4]) async-start(%h), calls=%handed_over
  %start = ((bf16[8,4]), bf16[64,4], u32[]) async-start(%w), calls=%started
  %continued = bf16[64,4] fusion(%start), kind=kCustom, calls=%started
  %zero = s32[] constant(0)
  %five = s32[] constant(5)
  %five.copy = s32[] copy(%five)
  %init = (s32[], f32[8,4], s32[]) tuple(%zero, %x, %five.copy)
  %loop = (s32[], f32[8,4], s32[]) while(%init), condition=%outer_condition, body=%outer_body
  %noted = (s32[], f32[8,4]) while(%init), condition=%inner_condition, body=%inner_body, \
backend_config={"known_trip_count":{"n":"7"}}
  %init.n = (s32[], f32[8,4], s32[]) tuple(%zero, %x, %n)
  %drawn = (s32[], f32[8,4], s32[]) while(%init.n), condition=%outer_condition, body=%outer_body
  %short = f32[8,4] all-reduce(%loop#1, %zero), channel_id=6, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %permuted = f32[8,4] collective-permute(%x), channel_id=4, source_target_pairs={{0,2},{2,4},{4,6},{6,0}}
  %alone = f32[8,4] all-reduce(%x), channel_id=5, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  ROOT %out = f32[8,4] get-tuple-element(%loop), index=1
}
"""
MESH = {"d": 4, "t": 2}
EXPERTS = """\
HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%sent (rows: bf16[64,8], to: bf16[80,8], at: s32[8]) -> bf16[80,8] {
  %rows = bf16[64,8] parameter(0)
  %to = bf16[80,8] parameter(1)
  %at = s32[8] parameter(2)
  ROOT %r = bf16[80,8] ragged-all-to-all(%rows, %to, %at, %at, %at, %at), channel_id=1, \
replica_groups={{0,2,4,6},{1,3,5,7}}, metadata={op_name="step/ragged" stack_frame_id=3}
}

%more (p: (s32[], s32[], f32[4])) -> pred[] {
  %p = (s32[], s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] get-tuple-element(%p), index=1
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%turn (p: (s32[], s32[], f32[4])) -> (s32[], s32[], f32[4]) {
  %p.1 = (s32[], s32[], f32[4]) parameter(0)
  %x.1 = f32[4] get-tuple-element(%p.1), index=2
  ROOT %reduced = f32[4] all-reduce(%x.1), channel_id=4, replica_groups={}, to_apply=%add
}

ENTRY %main (x: bf16[64,8], z: bf16[80,8], at: s32[8], n: s32[], y: f32[4]) -> f32[4] {
  %x = bf16[64,8] parameter(0)
  %z = bf16[80,8] parameter(1)
  %at.1 = s32[8] parameter(2)
  %n = s32[] parameter(3)
  %y = f32[4] parameter(4)
  %there = ((bf16[64,8], bf16[80,8], s32[8]), bf16[80,8], u32[]) async-start(%x, %z, %at.1), calls=%sent
  %arrived = bf16[80,8] async-done(%there)
  %back = bf16[64,8] ragged-all-to-all(%arrived, %x, %at.1, %at.1, %at.1, %at.1), channel_id=1, \
replica_groups={{0,2,4,6},{1,3,5,7}}, metadata={op_name="step/ragged" stack_frame_id=3}
  %one = f32[1] reduce-scatter(%y), channel_id=1, replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add, \
metadata={op_name="step/forward" stack_frame_id=5}
  %two = f32[1] reduce-scatter(%y), channel_id=1, replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add, \
metadata={op_name="step/again" stack_frame_id=5}
  %zero = s32[] constant(0)
  %init = (s32[], s32[], f32[4]) tuple(%zero, %n, %y)
  %drawn = (s32[], s32[], f32[4]) while(%init), condition=%more, body=%turn, metadata={op_name="step/while"}
  ROOT %rare = (s32[], s32[], f32[4]) while(%init), condition=%more, body=%turn, \
metadata={op_name="step/later_rounds/while"}
}
"""


def test_loops_turn_as_often_as_noted_or_as_their_condition_says() -> None:
    module = Module(PROGRAM)
    loops = [site for site in module.walk() if site.instruction.opcode == "while"]
    trips = {site.instruction.name: module.trip_count(site.instruction, site.computation) for site in loops}
    assert trips == {"loop": 5, "loop.4": 3, "noted": 7, "drawn": None}


def test_collectives_are_counted_where_they_run() -> None:
    everything = collectives(Module(PROGRAM, unknown_trips=10), MESH)
    found = {c.kind: c for c in everything if c.dtypes not in (("f32", "s32"), ("f16",))}
    # One operand is named by its place in a tuple.
    assert [c.wire_bytes for c in everything if c.dtypes == ("f32", "s32")] == [2 * 7 / 8 * (8 * 4 * 4 + 4)]
    assert [(c.kind, c.axes, c.wire_bytes) for c in everything if c.dtypes == ("f16",)] == [
        ("all-gather", ("t",), 8 * 4 * 2)  # handed over to another core
    ]
    assert set(found) == {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}
    # Its two appearances (start, continuation) are one collective.
    gather = found["all-gather"]
    assert (gather.axes, gather.dtypes, gather.loop_depth, gather.executions) == (("d", "t"), ("bf16",), 0, 1)
    assert gather.wire_bytes == 7 * 8 * 4 * 2
    # Reached three ways; that of most executions counts: 10 turns of unknown number times 3.
    reduced = found["all-reduce"]
    assert (reduced.axes, reduced.group_size, reduced.loop_depth, reduced.executions) == (("d",), 4, 2, 30)
    assert reduced.wire_bytes == 2 * 3 / 4 * 8 * 4 * 4
    scattered = found["reduce-scatter"]
    assert (scattered.axes, scattered.loop_depth, scattered.wire_bytes) == (("t",), 1, 8 * 4 * 4 / 2)
    assert (found["collective-permute"].axes, found["collective-permute"].wire_bytes) == (("d",), 8 * 4 * 4)


def test_what_a_shard_map_sends_is_counted_although_it_shares_a_channel() -> None:
    """Rows that are sent are at most those of the smaller buffer; offsets and sizes are not sent."""
    found = collectives(Module(EXPERTS), MESH)
    sent = [c for c in found if c.kind == "ragged-all-to-all"]
    assert [(c.axes, c.dtypes, c.wire_bytes) for c in sent] == [(("d",), ("bf16",), 3 / 4 * 64 * 8 * 2)] * 2
    assert sum(c.kind == "reduce-scatter" for c in found) == 2


def test_a_loop_that_does_not_turn_as_a_rule_is_not_counted() -> None:
    for never, turns in ((None, [7, 7]), ("later_rounds", [7, 0])):
        sites = Module(EXPERTS, unknown_trips=7, never=never).walk()
        assert [site.executions for site in sites if site.instruction.name == "reduced"] == turns


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_groups_in_every_spelling(text: str, groups: list[list[int]]) -> None:
    np.testing.assert_array_equal(device_groups(text, 8), groups)


def test_shapes() -> None:
    tuple_shape = "((s32[], f32[2,3]{1,0:T(8,128)(2,1)}), /*index=1*/pred[4,5]{1,0}, f32[])"
    assert elements(tuple_shape) == ["(s32[], f32[2,3]{1,0:T(8,128)(2,1)})", "/*index=1*/pred[4,5]{1,0}", "f32[]"]
    assert array_bytes("(f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/bf16[5]{0}, pred[], u64[2], f8e4m3fn[4])") == 55
