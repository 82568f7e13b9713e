"""Pages and interfaces over HTTP: a data set to look through."""
