"""`sra-data inspect`: `stage.py` is the command; `example.py` is what there is to show, the others show it."""
