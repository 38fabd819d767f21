"""The self-contained HTML report of a run directory: reads files only, computes nothing on a device."""

from looplm.report.build import write_report

__all__ = ["write_report"]
