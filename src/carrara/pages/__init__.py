"""How results look: pages and grids of pictures."""
