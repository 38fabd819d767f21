"""Bytes that fusions move, on programs as the TPU compiler writes them, counted by hand."""

import pytest

from looplm.compile.hlo import Module
from looplm.compile.traffic import memory_traffic

NESTED = """\
%cut (p.0: f32[24,8,16], p.1: s32[]) -> f32[8,16] {
  %p.0 = f32[24,8,16]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,8,16]{2,1,0} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %flat = f32[8,16]{1,0} bitcast(%slice)
}

%turned (p.0: f32[24,8,16]) -> f32[24,8,16] {
  %p.0 = f32[24,8,16]{2,1,0} parameter(0)
  ROOT %copy = f32[24,8,16]{1,2,0} copy(%p.0)
}

%doubled (p.0: f32[24,8,16]) -> f32[24,8,16] {
  %p.0 = f32[24,8,16]{2,1,0} parameter(0)
  ROOT %twice = f32[24,8,16]{2,1,0} add(%p.0, %p.0)
}
"""
PRODUCT = """\
  %x = f32[4,8]{1,0} parameter(0)
  %weights = f32[24,8,16]{2,1,0} parameter(1)
  %index = s32[] parameter(2)
"""
BODIES = {
    "a slice cut in a nested fusion": (
        "%w = f32[8,16]{1,0} fusion(%weights, %index), kind=kLoop, calls=%cut",
        "%w",
        8 * 16,
    ),
    "a slice cut out of a view of the stack": (
        "%v = f32[24,8,16]{1,2,0} fusion(%weights), kind=kLoop, calls=%turned\n"
        "  %w = f32[8,16]{1,0} fusion(%v, %index), kind=kLoop, calls=%cut",
        "%w",
        8 * 16,
    ),
    "a sum over the whole stack": (
        "%v = f32[24,8,16]{2,1,0} fusion(%weights), kind=kLoop, calls=%doubled\n"
        "  %w = f32[8,16]{1,0} fusion(%v, %index), kind=kLoop, calls=%cut",
        "%w",
        24 * 8 * 16,
    ),
    "a slice, and the whole stack beside it": (
        "%w = f32[8,16]{1,0} fusion(%weights, %index), kind=kLoop, calls=%cut\n"
        "  %all = f32[16]{0} reduce(%weights, %index), dimensions={0,1}",
        "%w",
        24 * 8 * 16,
    ),
}


def program(body: str, root: str, arguments: str, result: str) -> Module:
    return Module(
        f"HloModule test\n\n{NESTED}\n%fused ({arguments}) -> {result} {{\n{body}  ROOT {root}\n}}\n\n"
        f"ENTRY %main ({arguments}) -> {result} {{\n"
        + "".join(
            f"  %{name} = {shape} parameter({n})\n"
            for n, (name, shape) in enumerate(one.split(": ") for one in arguments.split("; "))
        )
        + f"  ROOT %out = {result} fusion({', '.join('%' + one.split(': ')[0] for one in arguments.split('; '))}), "
        "kind=kOutput, calls=%fused\n}\n"
    )


@pytest.mark.parametrize("name", BODIES)
def test_a_fusion_reads_what_it_needs_of_a_stack(name: str) -> None:
    body, weights, elements = BODIES[name]
    root = f"%dot = f32[4,16]{{1,0}} dot(%x, {weights}), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}"
    module = program(f"{PRODUCT}  {body}\n", root, "x: f32[4,8]; weights: f32[24,8,16]; index: s32[]", "f32[4,16]{1,0}")
    assert memory_traffic(module) == 4 * (4 * 8 + elements + 1 + 4 * 16)


@pytest.mark.parametrize("view", [True, False])
def test_a_fusion_writes_the_slice_that_it_puts_into_a_stack(view: bool) -> None:
    """Also where the stack is looked at in another layout on the way in or out."""
    turned = "%v = f32[24,8,16]{1,2,0} fusion(%weights), kind=kLoop, calls=%turned\n" if view else ""
    stack = "%v" if view else "%weights"
    body = (
        "  %x = f32[1,8,16]{2,1,0} parameter(0)\n  %weights = f32[24,8,16]{2,1,0} parameter(1)\n"
        f"  %index = s32[] parameter(2)\n  %zero = s32[] constant(0)\n  {turned}"
        f"  %put = f32[24,8,16]{{2,1,0}} dynamic-update-slice({stack}, %x, %index, %zero, %zero)\n"
    )
    root = "%flat = f32[192,16]{1,0} bitcast(%put)"
    module = program(body, root, "x: f32[1,8,16]; weights: f32[24,8,16]; index: s32[]", "f32[192,16]{1,0}")
    assert memory_traffic(module) == 4 * (8 * 16 + 1 + 8 * 16)
