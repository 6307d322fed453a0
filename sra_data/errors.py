"""The one tree of errors a user may meet.

Every message says what is wrong, where, with which value, and what to do about it, in one line; the command line
prints that line on standard error and exits with 1. Anything that is not an ``SRAError`` is a bug and keeps its
traceback.
"""

_CALLED: dict[str, str] = {}


def calls(folder: str, name: str) -> None:
    """From now on every message calls a folder of ours by the name its user gave: shards in a store by their URL."""
    _CALLED[folder] = name


def as_called(text: str) -> str:
    """A text with the names that users gave in the place of our own folders'."""
    for folder, name in _CALLED.items():
        text = text.replace(folder, name)
    return text


def one_line(error: BaseException, most: int | None = None) -> str:
    """What an error says on one line, of at most so many characters; its type's name where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


class SRAError(Exception):
    """Something the user can mend; the message is one line: what, where, value, remedy."""

    def __init__(self, *said: object) -> None:
        super().__init__(*(as_called(one) if isinstance(one, str) else one for one in said))


class ConfigError(SRAError):
    """An option, or a combination of options, that cannot be carried out."""


class SourceError(SRAError):
    """The user's text: a file, a row or a column that cannot be read as examples."""


class CaptureError(SRAError):
    """Another tool's capture of a teacher: a file or a row that is not as its format says, or not of this side."""


class TokenizerError(SRAError):
    """A tokenizer that cannot be loaded or whose offsets cannot be trusted."""


class ModelError(SRAError):
    """A model that cannot be loaded, captured or trained as asked."""


class ShardError(SRAError):
    """Shards on disk: missing, unfinished, damaged, or made from something else."""


class TrainingError(SRAError):
    """A run that cannot start or must stop."""


class DivergedError(TrainingError):
    """A run whose loss or gradients are no longer finite."""


class DamagedError(TrainingError):
    """A checkpoint that is not whole; the one before it may be.

    Attributes:
        what: the message without its remedy.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what = what
