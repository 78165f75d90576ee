"""From logits to the law that tokens are drawn from, and the one verification; pure functions and small state."""
