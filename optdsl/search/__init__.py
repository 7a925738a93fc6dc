"""Search over programs: random programs, and evolution on top of them."""
