"""The command line, recipes, report and demo: the only room that knows more than one capability."""
