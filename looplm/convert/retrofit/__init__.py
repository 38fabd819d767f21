"""A pretrained model of one loop, cut into prelude, looped block and coda: `looplm convert retrofit`.

The kept layers are copied as they are, and the injection's first value is such that one loop is exactly the stack of
them (retrofitted recurrence, arXiv 2511.07384; layers that are averaged or chosen: Relaxed Recursive Transformers,
arXiv 2410.20672).
"""
