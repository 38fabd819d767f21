"""Several processes of one job: how they find each other, and how they end when one of them is lost."""

from looplm.distributed.join import joined, wait_for_all

__all__ = ["joined", "wait_for_all"]
