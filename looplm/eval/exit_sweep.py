"""Exit rules against mean depth, with controls that know less or more than the rule, and thresholds that are safe."""

from collections.abc import Sequence

import numpy as np

from looplm.config.schema import Model
from looplm.eval.bootstrap import interval, resampled_means
from looplm.eval.bounds import hoeffding_bentkus
from looplm.eval.exit_choice import exit_loop, thresholds
from looplm.eval.exit_tokens import Tokens
from looplm.eval.subject import Subject
from looplm.infer.exit_rule import ExitRule, parse_exit
from looplm.metrics.exit_sweep import Controls, ExitPoint, ExitSweep, OraclePoint, RuleSweep, Safe

SHOWN = 12
"""Thresholds of a rule that are kept."""
TOLERANCES = (0.01, 0.02, 0.05)
"""Excess losses for which the loosest threshold is looked for, nats per token."""
CONFIDENCE = 0.95
PRICES = np.concatenate([[0.0], np.geomspace(1e-4, 30, 48)])
"""Of a loop, in nats, at which the oracle weighs loops against loss."""


def measure_exits(
    tokens: Tokens, rules: dict[str, ExitRule | None], subject: Subject, tolerances: Sequence[float]
) -> ExitSweep:
    """Measure exit rules on tokens of a sweep; rules: see `parse_swept`."""
    comparison = Comparison(tokens, is_task=subject.is_task)
    return ExitSweep(
        step=subject.step,
        ema=subject.ema,
        data=subject.held_out.name,
        num_tokens=len(tokens.documents_N),
        num_documents=tokens.num_documents,
        num_loops=tokens.num_loops,
        full_loss=float(comparison.loss_R[-1]),
        full_accuracy=float(tokens.correct_RN[-1].mean()),
        loss=comparison.loss_R.tolist(),
        rules=comparison.sweep(rules, subject.run.model, tolerances),
        oracle=comparison.oracle,
    )


class Comparison:
    """All that points of a sweep are compared with."""

    def __init__(self, tokens: Tokens, *, is_task: bool) -> None:
        self.tokens, self.is_task = tokens, is_task
        self.nll_GR = tokens.by_document(tokens.nll_RN.T)
        self.counts_G = tokens.by_document(np.ones(len(tokens.documents_N)))
        self.loss_R = self.nll_GR.sum(axis=0) / self.counts_G.sum()
        self.oracle = _oracle(tokens.nll_RN)

    def sweep(self, rules: dict[str, ExitRule | None], model: Model, tolerances: Sequence[float]) -> list[RuleSweep]:
        """Measure the rules; see `parse_swept`."""
        swept = []
        for name, given in rules.items():
            texts = [name] if given else thresholds(name, self.tokens)
            found = [(text, rule) for text in texts if (rule := parse_exit(text, model)) is not None]
            exits = _one_a_depth([(text, exit_loop(rule, self.tokens)) for text, rule in found])
            if exits:
                swept.append(self._rule(name, exits, tolerances))
        return swept

    def _rule(self, name: str, exits: list[tuple[str, np.ndarray]], tolerances: Sequence[float]) -> RuleSweep:
        """Measure thresholds, deepest first."""
        measured = [self.point(text, exit_N) for text, exit_N in exits]
        columns = np.stack([columns_G2 for _, columns_G2 in measured], axis=1)
        sums = columns.reshape(len(columns), -1)
        samples_TP2 = resampled_means(sums, self.counts_G).reshape(-1, len(exits), 2)
        low_P2, high_P2 = (x.tolist() for x in interval(samples_TP2))
        points = [
            point.model_copy(
                update={
                    "excess_low": low[0], "excess_high": high[0], "gain_low": low[1], "gain_high": high[1],
                }
            )
            for (point, _), low, high in zip(measured, low_P2, high_P2, strict=True)
        ]  # fmt: skip
        upper_P = np.quantile(samples_TP2[:, :, 0], CONFIDENCE, axis=0)
        chosen = _safe(upper_P, tolerances) if len(self.counts_G) > 1 else {}
        safe = [
            Safe(
                tolerance=tolerance, confidence=CONFIDENCE, rule=points[i].rule, mean_depth=points[i].mean_depth,
                excess_upper=float(upper_P[i]), disagreement_upper=self._disagreement(exits[i][1], len(exits)),
            )
            for tolerance, i in chosen.items()
        ]  # fmt: skip
        return RuleSweep(name=name, points=_spread(points), safe=safe)

    def point(self, text: str, exit_N: np.ndarray) -> tuple[ExitPoint, np.ndarray]:
        """Return a point without its intervals, and by document the sums (G, 2) that they are of: excess and gain."""
        tokens, R, G = self.tokens, self.tokens.num_loops, self.tokens.num_documents
        every_N, documents_N = np.arange(exit_N.size), tokens.documents_N
        nll_N = tokens.nll_RN[exit_N - 1, every_N]
        right_N = tokens.correct_RN[exit_N - 1, every_N].astype(bool)
        exits_GR = np.bincount(documents_N * R + exit_N - 1, minlength=G * R).reshape(G, R)
        nll_G = np.bincount(documents_N, nll_N, minlength=G)
        share_R = exits_GR.sum(axis=0) / exit_N.size
        random_G = self.nll_GR @ share_R
        depth, loss, random = float(exit_N.mean()), nll_G.sum() / exit_N.size, random_G.sum() / exit_N.size
        shuffled = float((exits_GR / self.counts_G[:, None] * self.nll_GR).sum() / exit_N.size)
        p50, p90, p99 = (int(np.argmax(np.cumsum(share_R) >= share - 1e-12)) + 1 for share in (0.5, 0.9, 0.99))
        excess, gain = float(loss - self.loss_R[-1]), float(random - loss)
        point = ExitPoint(
            rule=text, mean_depth=depth, histogram=share_R.tolist(), depth_p50=p50, depth_p90=p90, depth_p99=p99,
            loss=float(loss), excess=excess, excess_low=excess, excess_high=excess, accuracy=float(right_N.mean()),
            disagreement=float(self._differs(exit_N).mean()),
            controls=Controls(
                fixed=float(np.interp(depth, np.arange(1, R + 1), self.loss_R)), random=float(random),
                shuffled=shuffled, oracle=self._oracle_at(depth),
            ),
            gain=gain, gain_low=gain, gain_high=gain,
            solved=float(np.mean(np.bincount(documents_N, ~right_N, minlength=G) == 0)) if self.is_task else None,
        )  # fmt: skip
        return point, np.stack([nll_G - self.nll_GR[:, -1], random_G - nll_G], axis=1)

    def _differs(self, exit_N: np.ndarray) -> np.ndarray:
        best_RN = self.tokens.best_RN
        return best_RN[exit_N - 1, np.arange(exit_N.size)] != best_RN[-1]

    def _oracle_at(self, depth: float) -> float:
        return float(np.interp(depth, [p.mean_depth for p in self.oracle], [p.loss for p in self.oracle]))

    def _disagreement(self, exit_N: np.ndarray, number: int) -> float:
        """Bound the mean over documents of the share of tokens that differ, for all of `number` thresholds at once."""
        mean = float(np.mean(self.tokens.by_document(self._differs(exit_N)) / self.counts_G))
        return hoeffding_bentkus(mean, len(self.counts_G), (1 - CONFIDENCE) / number)


def _safe(upper_P: np.ndarray, tolerances: Sequence[float]) -> dict[float, int]:
    """Return for every tolerance which threshold is the loosest that is safe, where one is.

    Thresholds are tested in a fixed order, deepest first, until one fails: so the error of all tests together is that
    of one (learn then test, arXiv 2110.01052).
    """
    chosen = {}
    for tolerance in sorted(set(tolerances)):
        passes_P = upper_P <= tolerance
        number = len(passes_P) if passes_P.all() else int(np.argmin(passes_P))
        if number:
            chosen[tolerance] = number - 1
    return chosen


def _one_a_depth(exits: list[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    """Order by mean depth, deepest first, without those that are alike."""
    ordered = sorted(exits, key=lambda one: -int(one[1].sum()))
    return list({int(exit_N.sum()): (text, exit_N) for text, exit_N in ordered}.values())


def _spread(points: list[ExitPoint]) -> list[ExitPoint]:
    """Choose some whose mean depths are spread evenly."""
    depths_P = np.array([point.mean_depth for point in points])
    wanted = np.linspace(depths_P[0], depths_P[-1], SHOWN)
    return [points[i] for i in sorted({int(np.argmin(np.abs(depths_P - depth))) for depth in wanted})]


def _oracle(nll_RN: np.ndarray) -> list[OraclePoint]:
    """Return the least loss at mean depths from 1 on: every token weighs its loss against a price of a loop."""
    loop_R1 = np.arange(1, len(nll_RN) + 1)[:, None]
    every_N, points = np.arange(nll_RN.shape[1]), {}
    for price in PRICES:
        exit_N = np.argmin(nll_RN + price * loop_R1, axis=0)
        depth = float(exit_N.mean()) + 1
        points[depth] = OraclePoint(mean_depth=depth, loss=float(nll_RN[exit_N, every_N].mean()))
    points[1.0] = OraclePoint(mean_depth=1, loss=float(nll_RN[0].mean()))
    return [points[depth] for depth in sorted(points)]
