"""Types, levels and the one table of operators and built-ins. Imports nothing else of optdsl."""
