"""A module that cannot be imported."""

raise RuntimeError("too early")
