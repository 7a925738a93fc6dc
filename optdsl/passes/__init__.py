"""Program to program: rewrite rules, common subexpressions, dead code, algebra; and the cost they lower."""
