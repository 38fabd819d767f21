"""Several processes of one job: how they find each other, and how they end when one of them is lost."""

from looplm.distributed.join import end_process, joined, leave, wait_for_all

__all__ = ["end_process", "joined", "leave", "wait_for_all"]
