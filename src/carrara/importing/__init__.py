"""Importing: any source becomes rows of a data set."""
