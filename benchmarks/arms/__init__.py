"""The contestants of the decoding benchmark: each runs in a process of its own, on the cores that it is given."""
