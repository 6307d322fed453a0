"""Slow float64 loops written from the formulas alone; the fast code is held against them."""
