"""From text to a checked, typed program: source, diagnostics, syntax tree, parser, checks, formatter."""
