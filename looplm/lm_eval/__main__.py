"""`python -m looplm.lm_eval`: the command line of lm-evaluation-harness, with the model `looplm` and several depths.

    python -m looplm.lm_eval --model looplm --model_args workdir=RUN,loops=1+2+4+8 --tasks NAME --include_path DIR

The harness knows no other way to add a model than to import it. It is run once for every depth; likelihoods of all of
them come from the first one's pass. So every depth has a table and, with --output_path, a file of its own; and a cache
of its own, since the harness looks for answers by the question alone.
"""

import sys
from typing import Any

from looplm.errors import UserError, show
from looplm.lm_eval.library import require_library


def main() -> int:
    """Run the harness's command line. Returns 0, or 2 for a mistake in what looplm was told."""
    try:
        require_library()
        _run()
    except UserError as error:
        show(error)
        return 2
    return 0


def _run() -> None:
    from lm_eval._cli import HarnessCLI
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.utils import setup_logging, simple_parse_args_string

    from looplm.lm_eval.model import LooplmModel
    from looplm.lm_eval.opening import parse_loops

    setup_logging()
    parser = HarnessCLI()
    arguments = parser.parse_args()
    file = getattr(arguments, "config", None)
    stored = EvaluatorConfig.load_yaml_config(file) if file else {}

    def said(name: str) -> Any:
        return getattr(arguments, name, None) or stored.get(name)

    if said("model") != "looplm":
        parser.execute(arguments)
        return
    # The harness's own is 1.
    arguments.batch_size = said("batch_size") or "auto"
    given = said("model_args") or {}
    given = simple_parse_args_string(given) if isinstance(given, str) else dict(given)
    # The harness names its files after this argument.
    if "workdir" in given:
        given["pretrained"] = given.pop("workdir")
    loops = given.pop("loops", None)
    answers = LooplmModel(**given, batch_size=arguments.batch_size).answers
    depths = parse_loops(loops, answers.model.loop.num_loops)
    answers.ask(depths)
    cache = said("use_cache")
    for depth in depths:
        arguments.model_args = given | {"loops": depth}
        arguments.use_cache = f"{cache}-depth-{depth}" if cache else None
        parser.execute(arguments)


if __name__ == "__main__":
    sys.exit(main())
