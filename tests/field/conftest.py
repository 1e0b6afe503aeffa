"""Marks every test of this folder as `field`: `make test` runs them, `make check` does not."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.field)
