"""`sra-train report`: runs on a page. `stage.py` is the command; records are read, drawn, and put side by side."""
