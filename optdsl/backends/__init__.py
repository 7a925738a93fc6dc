"""Programs to files: one folder per backend, each with `NAME`, `supports(program)`, `emit(...)`."""
