"""The typed program: expressions, programs, verifier, text form and the interpreter that defines meaning."""
