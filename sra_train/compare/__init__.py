"""`sra-train compare`: the same student by several methods and seeds, and what can be said about the difference."""
