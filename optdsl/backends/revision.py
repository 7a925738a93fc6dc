"""The revision of the generator: raised when the same program gives other files than before."""

REVISION = 8
