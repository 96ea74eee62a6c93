"""Import this before numba in a Flink worker.

Flink replaces `builtins.print` by a bound method of a class in its worker's main module; numba's
type registry looks functions up by module and name and fails on it. So the original stands in
while numba is imported.
"""

from __future__ import annotations

import builtins

from models.kernel_cache import key_by_source

key_by_source()
_replaced = builtins.print
_original = getattr(getattr(_replaced, "__self__", None), "_print", None)
if _original is not None:
    builtins.print = _original
try:
    import numba  # noqa: F401
finally:
    builtins.print = _replaced
