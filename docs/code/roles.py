"""An extension of griffe: the roles of the docstrings, ``:class:`Mask```, become links to the reference."""

from __future__ import annotations

import re
from typing import Any

import griffe

from docs.code.names import linked


class Roles(griffe.Extension):
    """Rewrites every docstring when it has been read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if isinstance(obj, griffe.Attribute) and str(obj.value) == "field()":
            obj.value = None  # how our dataclasses write a setting without a default
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)  # which griffe knows as code
            obj.docstring.value = linked(text, obj.module.path)
