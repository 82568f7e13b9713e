"""The pictures: importers bring them, a table keeps them, a loader hands them out."""
