"""The verbs of certificates: run, verify, plan, holdout and phenomena, with their reports.

Nothing is imported here: a process that verifies imports the decoder and no training code.
"""
