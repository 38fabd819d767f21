"""At which loop every token of a pass leaves under an exit rule, and the thresholds at which a rule is tried."""

import re
from collections.abc import Sequence

import numpy as np

from looplm.config.schema import Run
from looplm.errors import UserError
from looplm.eval.exit_tokens import Tokens
from looplm.infer.exit_rule import COUNTS, SHARES, TOLERANCES, ExitRule, OneRule, parse_exit
from looplm.model.functional import FunctionalLM

EXAMPLES = {"gate": "0.5", "confidence": "0.5", "argmax": "2", "kl": "0.1", "latent": "0.1", "entropy": "1"}
ALL = "all"
CANDIDATES = 64
"""Thresholds that are looked at for a rule; those that are shown have mean depths that are spread evenly."""


def parse_swept(texts: Sequence[str], run: Run) -> dict[str, ExitRule | None]:
    """Read what `--exit` of an evaluation says: `{name: rule}`, None for a rule whose threshold is swept.

    `all` stands for every rule that the model has. Raises UserError for what is no rule, and for a model whose loops
    are not those of one pass.
    """
    model, found = run.model, dict[str, ExitRule | None]()
    if texts and (setting := FunctionalLM(model).tied_to_depth):
        raise UserError(
            f"--exit is measured in one pass, and loops of a model with {setting} depend on how many there are; "
            "leave it out"
        )
    if texts and model.memory is not None and model.memory.length and model.memory.loops == "last":
        raise UserError(
            "--exit is measured in one pass, and with model.memory.loops=last every depth has a memory of its own; "
            "leave it out"
        )
    if texts and run.loop.num_loops == 1:
        raise UserError("--exit needs a model of at least two loops (loop.num_loops=1); leave it out")
    for text in texts:
        if text == ALL:
            names = [name for name in EXAMPLES if name != "gate" or model.exit_gate is not None]
            found |= dict.fromkeys(names)
            continue
        name, _, _ = text.partition(",")
        if re.search(r"[:|+]", text) or name not in EXAMPLES:
            found[text] = parse_exit(text, model)
        else:
            parse_exit(with_threshold(text, EXAMPLES[name]), model)
            found[text] = None
    return found


def with_threshold(swept: str, value: str) -> str:
    """Return e.g. `kl:0.1,min=2` of `kl,min=2`."""
    name, comma, options = swept.partition(",")
    return f"{name}:{value}{comma}{options}"


def exit_loop(rule: ExitRule, tokens: Tokens) -> np.ndarray:
    """Return the loop (1..R) after which every token leaves, (N,) int."""
    wants_RN = np.zeros(tokens.nll_RN.shape, bool)
    for group in rule.groups:
        wants_RN |= np.logical_and.reduce([_wants(one, tokens) for one in group])
    wants_RN[-1] = True
    return np.argmax(wants_RN, axis=0) + 1


def thresholds(swept: str, tokens: Tokens) -> list[str]:
    """Return rules with thresholds from which few tokens leave early to such from which most do, deepest first."""
    name = swept.partition(",")[0]
    if name in COUNTS:
        values = [str(count) for count in range(tokens.num_loops, 0, -1)]
    else:
        score_N = tokens.scores[name][:-1].ravel()
        score_N = score_N[np.isfinite(score_N)]
        quantiles = np.quantile(score_N, np.linspace(0, 1, CANDIDATES)) if score_N.size else np.empty(0)
        if name in SHARES:
            quantiles = np.minimum(quantiles, 1)
        values = list(dict.fromkeys(f"{value:.4g}" for value in sorted(quantiles, reverse=name in SHARES) if value > 0))
    assert name in (*SHARES, *COUNTS, *TOLERANCES)
    return [with_threshold(swept, value) for value in values]


def _wants(one: OneRule, tokens: Tokens) -> np.ndarray:
    score_RN = tokens.scores[one.name]
    wants_RN = score_RN < one.value if one.name in TOLERANCES else score_RN >= one.value
    if one.patience == 1 and one.least == 1:
        return wants_RN
    held_N = np.zeros(wants_RN.shape[1], int)
    patient_RN = np.zeros_like(wants_RN)
    for loop, wants_N in enumerate(wants_RN):
        held_N = np.where(wants_N, held_N + 1, 0)
        patient_RN[loop] = (held_N >= one.patience) & (loop + 1 >= one.least)
    return patient_RN
