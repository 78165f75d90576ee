"""What target and draft say to each other, as frames of fixed layout."""
