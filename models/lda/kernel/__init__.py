"""The document step of LDA, compiled by Numba where that is installed, and in torch; apart from all that uses it.

``step`` says what it does, chooses between the two, and holds the one in torch; ``compiled_step`` is the one in Numba,
written in the vectors of ``simd``; ``jit`` is Numba itself, if it is there.
"""

from .jit import compile_function, has_compiled_kernel, use_compiled
from .step import DocumentStep, ExpectedTopics, document_step, expected_topics

__all__ = [
    "DocumentStep",
    "ExpectedTopics",
    "compile_function",
    "document_step",
    "expected_topics",
    "has_compiled_kernel",
    "use_compiled",
]
