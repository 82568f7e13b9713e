"""Exporting: a data set becomes files that other programs read."""
