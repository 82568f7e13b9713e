"""Lessons: pictures that teach, one a file; `carrara show` is their list."""
