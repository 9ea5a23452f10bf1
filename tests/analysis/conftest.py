"""What the tests of the analysis share."""

import pytest

from klsweep.record.folder import SweepFolder


@pytest.fixture
def sweep(tmp_path) -> SweepFolder:
    return SweepFolder(tmp_path / "s")
