"""Glances of a whole data set, for tests that compare pictures by them."""

from carrara.dataset.dataset import Dataset
from carrara.dataset.fingerprints import derive_glances


def all_glanced(dataset: Dataset) -> str:
    """Their column, derived where it is missing."""
    *_, last = derive_glances(dataset)
    assert last.column
    return last.column
