from looplm.checkpoint.tree import Kind, differences

STORED = {
    "core.layers.attention.query.kernel": Kind((1, 16, 16), "float32"),
    "embedding.table": Kind((384, 16), "float32"),
    "head": Kind((384, 16), "float32"),
}


def test_equal_trees_do_not_differ() -> None:
    assert differences(STORED, STORED) == ""


def test_every_leaf_is_named_with_shapes_types_and_the_nearest_name() -> None:
    wanted = {
        "core.layers.attention.queries.kernel": Kind((1, 16, 16), "float32"),
        "embedding.table": Kind((384, 32), "float32"),
        "head": Kind((384, 16), "bfloat16"),
    }
    assert differences(STORED, wanted).split("; ") == [
        "core.layers.attention.queries.kernel float32[1, 16, 16] is not stored "
        "(nearest: core.layers.attention.query.kernel float32[1, 16, 16])",
        "embedding.table is float32[384, 16] there and float32[384, 32] here",
        "head is float32[384, 16] there and bfloat16[384, 16] here",
        "core.layers.attention.query.kernel float32[1, 16, 16] is not wanted",
    ]


def test_a_long_list_is_cut() -> None:
    many = {f"leaf_{number}": Kind((), "int32") for number in range(40)}
    assert differences(many, {}).endswith("; and 28 more")
