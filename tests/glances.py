"""Glances of a whole data set, for tests that compare pictures by them."""

from carrara.dataset.dataset import Dataset
from carrara.dataset.fingerprints import derive_glances, glance_column


def all_glanced(dataset: Dataset) -> str:
    """Their column, derived where it is missing."""
    for _ in derive_glances(dataset):
        pass
    column = glance_column(dataset)
    assert column
    return column
