"""Bad inputs, `make bad-inputs`: a table of mistakes, each of which is one line, and leaves nothing behind."""
