"""One text at a time, by the plainest code there is: the oracle that the engine is held against."""
