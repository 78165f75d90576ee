"""The target's side of drafts: where they come from, and what is known of them."""
