"""Which requests compute what in a step, in which pages, and the one target pass that does it."""
