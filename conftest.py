"""Before any test module imports numba: its cache must not serve kernels of older sources."""

from models.kernel_cache import key_by_source

key_by_source()
