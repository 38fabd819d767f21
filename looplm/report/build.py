"""From a run directory to its report: reads the files, puts the sections together, writes one HTML file."""

from html import escape
from pathlib import Path

from looplm.data.folder import obstacle, write_result
from looplm.errors import UserError
from looplm.report import found as files
from looplm.report import pieces
from looplm.report.found import Found
from looplm.report.page import page
from looplm.report.sections.depth import depth
from looplm.report.sections.exits import exits
from looplm.report.sections.experts import experts
from looplm.report.sections.facts import facts, settings, sources
from looplm.report.sections.first_states import first_states
from looplm.report.sections.grids import grids
from looplm.report.sections.halting import halting
from looplm.report.sections.header import header
from looplm.report.sections.loops import loops
from looplm.report.sections.machine import machine
from looplm.report.sections.policies import policies
from looplm.report.sections.restarts import restarts
from looplm.report.sections.solve import solve
from looplm.report.sections.tasks import tasks
from looplm.report.sections.texts import texts
from looplm.report.sections.tokens import tokens
from looplm.report.sections.training import training

SECTIONS = (
    depth, tasks, solve, halting, grids, restarts, exits, policies, loops, first_states, tokens, texts, training,
    experts, machine, sources, facts, settings,
)  # fmt: skip
"""In the order in which they are read."""


def write_report(workdir: Path, out: Path | None = None) -> Path:
    """Write WORKDIR/report.html, or `out`, from its config, metrics and evaluations, and return its path.

    The file is complete in itself and replaces an earlier one at once. Sections without numbers are left out with a
    line that says what is missing. Raises UserError for a missing run directory, one without metrics, broken files, or
    a place that cannot be written.
    """
    workdir = Path(workdir)
    target = workdir / "report.html" if out is None else out
    if not workdir.is_dir():
        raise UserError(f"run directory {workdir} does not exist; give the --workdir of `looplm train`")
    if reason := obstacle(target):
        raise UserError(f"{target} cannot be written: {reason}; give a file elsewhere with --out")
    html = build_report(files.read(workdir))
    # The name of a folder may hold bytes that are no UTF-8.
    write_result(target, html.encode("utf-8", errors="replace"))
    return target


def build_report(found: Found) -> str:
    """Return the HTML."""
    shown = [part for section in SECTIONS if (part := section(found))]
    summary = f"{header(found)}\n{pieces.navigation(shown)}"
    return page(escape(f"looplm report: {found.name}"), summary, shown)
