"""Closed choices that the command line and the rooms share; it imports nothing, so `--help` may read it."""

from typing import Literal

Overlong = Literal["truncate", "truncate-prompt", "skip", "window"]
Boundaries = Literal["token", "word"]
VocabularyMatch = Literal["bytes", "exact"]
OnInvalid = Literal["fail", "skip"]
Gated = Literal["auto", "manual"]
Engine = Literal["local", "ray"]
