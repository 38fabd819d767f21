"""Tasks of lm-evaluation-harness (the library `lm_eval`, extra `lm-eval`) on looped models, at several depths at once.

`encoding`, `batches`, `score` and `answers` know nothing of the library: texts in, likelihoods at every depth out.
`model` is what the library asks; `tasks` is `looplm eval --tasks`, and `python -m looplm.lm_eval` the library's own
command line.
"""
