import pytest

from sdcore.analysis import intervals


@pytest.fixture(scope="module")
def two_are_enough():
    """Bootstraps of two clusters have bounds, which can be derived by hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "FEWEST", 2)
        yield
