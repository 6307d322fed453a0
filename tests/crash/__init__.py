"""The crash harness, `make crash`: signals, flipped bits, malformed metadata and other bad luck, from one seed."""
