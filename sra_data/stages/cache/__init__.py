"""`sra-data cache-teacher`: `stage.py` is the command; it runs the teacher once and keeps what it says."""
