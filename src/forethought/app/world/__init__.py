"""The verbs of the world room: collect, train, evaluate, probe, surprise, and the demo that does them all."""
