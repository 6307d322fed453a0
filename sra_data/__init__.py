"""Write down what a teacher said about a corpus, once: align, cache, verify."""

__version__ = "0.1.0"
