"""Imports of optional dependencies that name the extra to install when they fail."""

from __future__ import annotations

import importlib
from types import ModuleType

from forethought.core.errors import MissingExtraError


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional module.

    Raises:
        MissingExtraError: the module is not installed, or broken; the message gives the pip command for the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        state = "is not installed" if absent else f"cannot be imported here ({error})"
        raise MissingExtraError(
            f"{purpose} needs the package {package!r}, which {state}; "
            f"install it with: pip install 'forethought[{extra}]'"
        ) from error
