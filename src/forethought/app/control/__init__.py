"""The verbs of control."""
