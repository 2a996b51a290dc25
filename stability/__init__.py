"""stability: sparse fine-tuning, its leave-one-out stability and its bounds, measured.

A :class:`Problem` is a pretrained model with data. A selector (:mod:`stability.selectors`) chooses the :class:`Mask` of
parameters that may change, and :class:`FineTuning` or :class:`Minimisation` trains them. :func:`measure` gives the
leave-one-out stability of that as a :class:`StabilityEstimate`. :mod:`stability.bounds` has the theorems, and a
:class:`Study` repeats the measurement for many methods and seeds.

The names are loaded when they are first used: ``import stability`` itself is quick.
"""

from importlib import metadata as _metadata

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)

__version__ = _metadata.version("peft-stability")  # pyproject.toml has the number; everything else asks here
