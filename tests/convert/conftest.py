"""What tests of several conversions need."""

import pytest

from looplm.convert import import_folder as importing


@pytest.fixture
def quick(monkeypatch):
    """Imports without the comparison of logits, which one test makes."""
    monkeypatch.setattr(importing, "LOGITS_BYTES", -1)
