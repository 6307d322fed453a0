"""The only room that opens data files: format in README.md, public face in store.py."""
