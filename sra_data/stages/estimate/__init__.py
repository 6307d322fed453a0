"""`sra-data estimate`: `stage.py` is the command; bytes are arithmetic, hours are measured on a sample."""
