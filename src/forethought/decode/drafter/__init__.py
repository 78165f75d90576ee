"""The draft's side of the engine: answers prepared for the verdicts that may come."""
