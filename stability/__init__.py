"""stability: sparse fine-tuning, its leave-one-out stability and its bounds, measured.

A :class:`Problem` is a pretrained model with data. A selector (:mod:`stability.selectors`) chooses the :class:`Mask` of
parameters that may change, and :class:`FineTuning` or :class:`Minimisation` trains them. :func:`measure` gives the
leave-one-out stability of that as a :class:`StabilityEstimate`. :mod:`stability.bounds` has the theorems, and a
:class:`Study` repeats the measurement for many methods and seeds.

The names are loaded when they are first used: ``import stability`` itself is quick.
"""

import importlib as _importlib
import os as _os
import sys as _sys
from importlib import machinery as _machinery
from importlib import metadata as _metadata

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)

# torch asks for it once, when it makes its first tensor. Where all parameters of a large model are trained, every step takes much
# new memory, and in large pages the system gives it quickly.
_os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = _metadata.version("peft-stability")  # pyproject.toml has the number; everything else asks here


_ALSO = {
    f"{__name__}.{name}": f"{__name__}.leave_one_out.{name}" for name in ("estimators", "loops", "perturbations", "predictors")
}


class _Handed:
    """Lets ``from stability.estimators import Exact`` find the module that ``stability.estimators`` is.

    It is imported where it is asked for, and not before: until then nothing heavy is.
    """

    def find_spec(self, name, path=None, target=None):
        """The loader of such a name, and None for any other."""
        return _machinery.ModuleSpec(name, self) if name in _ALSO else None

    def create_module(self, spec):
        """The module itself, under its second name."""
        found = _importlib.import_module(_ALSO[spec.name])
        spec.loader_state = found.__spec__
        return found

    def exec_module(self, module):
        """It has been executed already; the import has put another specification into it, and it gets its own back."""
        module.__spec__ = module.__spec__.loader_state


if "_handed" not in globals():  # a reload finds the one that is there
    _handed = _Handed()
    _sys.meta_path.append(_handed)
