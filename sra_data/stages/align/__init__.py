"""`sra-data align`: `stage.py` is the command; a plan is made, its units are done, what was done is counted."""
