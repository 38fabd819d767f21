"""Sign descent on the rows that a step has read."""

import jax.numpy as jnp
import numpy as np

from looplm.optim.row_sign import scale_by_row_sign


def test_rows_that_are_read_move_by_the_sign_and_decay_and_no_others_do() -> None:
    generator = np.random.default_rng(0)
    table, gradient = generator.normal(size=(2, 6, 4)).astype(np.float32)
    gradient[[1, 4]] = 0
    gradient[2, 1:] = 0
    optimizer = scale_by_row_sign(0.1)
    direction, _ = optimizer.update({"table": jnp.asarray(gradient)}, optimizer.init({}), {"table": jnp.asarray(table)})
    expected = np.sign(gradient) + np.float32(0.1) * table
    expected[[1, 4]] = 0
    np.testing.assert_array_equal(direction["table"], expected)
