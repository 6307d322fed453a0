"""Teach any student from the shards `sra_data` wrote; there is no way to load a teacher here."""
