"""What single decoder families need beside what all have in common.

A family whose attention does not go through transformers' registry has a module here, named after its `model_type`
("-" written "_"), with one function `traceable(model) -> ContextManager` that puts code of equal results in place. It
is found by that name; most families have none.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from typing import Any

__all__ = ["traceable"]


def traceable(model: Any) -> contextlib.AbstractContextManager[None]:
    """While inside, what a family needs is in place. `model`: of transformers, whose `config.model_type` says which."""
    family = _family_module(model.config.model_type)
    found: contextlib.AbstractContextManager[None] = (
        contextlib.nullcontext() if family is None else family.traceable(model)
    )
    return found


@functools.cache
def _family_module(model_type: str) -> Any:
    name = model_type.replace("-", "_")
    # A model type is whatever a config.json says.
    if not name.isidentifier() or importlib.util.find_spec(f"{__name__}.{name}") is None:
        return None
    return importlib.import_module(f"{__name__}.{name}")
