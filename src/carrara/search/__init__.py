"""Finds pictures: by words, by meaning, by likeness, and in a space of texts and pictures."""
