"""`sra-data import`: a teacher's pages from another tool's capture of it."""
