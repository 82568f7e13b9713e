"""What one does to a data set before training: look at it, drop what is there twice, hold out, choose, name."""
