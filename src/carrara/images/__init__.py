"""From the bytes of any picture to pixels, and what can be said of a picture alone."""
