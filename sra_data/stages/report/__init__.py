"""`sra-data report`: `stage.py` is the command; numbers are gathered, drawn, and put on one page."""
