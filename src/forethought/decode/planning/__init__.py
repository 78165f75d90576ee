"""How much to speculate: curves of passes, beliefs about verdicts, and the choice."""
