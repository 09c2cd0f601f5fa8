"""What single model families need so that torch.export can follow them, and which ones it cannot.

A family whose code torch.export cannot follow, or of which it would keep one branch only, has a module here named
after its `model_type` ("-" written "_"), with one function `traceable(module) -> ContextManager` that puts code of
equal results in place. It is found by that name; a family that needs nothing has no module. Replacements hold while a
model is traced, never while PyTorch computes what a graph is compared with. A family whose model changes itself when it
is called says so there too, by `CHANGES_WHEN_CALLED = True`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["repeatable", "replaced", "traceable", "unchanged"]

_MEMORY_FLAGS = ("use_cache", "use_mems_eval")
"""Settings that make a model return states for a next call. Nobody reads them here, and making them adds conditions:
XLNet's memory of 512 tokens would limit the graph to inputs of fewer."""


@contextlib.contextmanager
def traceable(module: nn.Module) -> Iterator[None]:
    """Make a model's code one that torch.export can follow, with equal results; afterwards it is as it was.

    Args:
        module: a transformers model or a module that holds one; `module.config.model_type` says which.
    """
    config: Any = module.config
    family = _family_module(config.model_type)
    with contextlib.ExitStack() as stack:
        stack.enter_context(unchanged(module))
        for flag in _MEMORY_FLAGS:
            if getattr(config, flag, False):
                stack.enter_context(replaced(config, flag, False))
        if family is not None:
            stack.enter_context(family.traceable(module))
        yield


def repeatable(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """For calls in PyTorch: what a model computes does not depend on what it was called with before.

    Costs time only for families that need it, so that calls can be measured in it.
    """
    family = _family_module(module.config.model_type)
    return unchanged(module) if getattr(family, "CHANGES_WHEN_CALLED", False) else contextlib.nullcontext()


@contextlib.contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Undo afterwards what calling a model did to its modules: attributes, submodules and buffers, not their values.

    BigBird, for one, turns into a model with full attention for good when it reads its first short input.
    """
    saved = [
        (part, dict(vars(part)), {name: dict(vars(part)[name]) for name in ("_modules", "_buffers", "_parameters")})
        for part in module.modules()
    ]
    try:
        yield
    finally:
        for part, attributes, tables in saved:
            vars(part).clear()
            vars(part).update(attributes)
            for name, table in tables.items():
                vars(part)[name].clear()
                vars(part)[name].update(table)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute of a module, class or object another value for a while."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@functools.cache
def _family_module(model_type: str) -> Any:
    name = model_type.replace("-", "_")
    # A model type is whatever a config.json says.
    if not name.isidentifier() or importlib.util.find_spec(f"{__name__}.{name}") is None:
        return None
    module = importlib.import_module(f"{__name__}.{name}")
    return module if hasattr(module, "traceable") else None
