"""Write down what a teacher said about a corpus, once: align, cache, verify.

    import sra_data

    aligned = sra_data.align("Qwen/Qwen1.5-1.8B", "openai-community/gpt2", data="my.jsonl")
    sra_data.cache_teacher(aligned.shards)

See `sra_data.api`, which is imported when one of these is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sra_data.api import align, cache_teacher, import_capture, open_shards

__all__ = ["__version__", "align", "cache_teacher", "import_capture", "open_shards"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The functions of `sra_data.api`, imported on demand."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("sra_data.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
