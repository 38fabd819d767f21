"""Axes that several drawings share."""

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator


def by_depth(axes: Axes, label: str, name: str = "depth (loops)") -> None:
    """Label the axes of a drawing whose horizontal axis counts loops."""
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axes.set(xlabel=name, ylabel=label)
