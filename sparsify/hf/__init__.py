"""What transformers has to know of this package, told to it as soon as somebody uses transformers.

`import sparsify` alone costs nothing of it: importing transformers' models takes longer than importing torch.  Each
module here registers what it defines when it is imported, and is imported right after the module of transformers that
it registers with; at once, if that one is there already.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

AFTER = {  # module of transformers -> ours, which register with it
    "transformers.models.auto.configuration_auto": ["config"],
    "transformers.models.auto.modeling_auto": ["hyena_dna", "hyena_lm", "m2_bert"],
    "transformers.quantizers": ["quantizer"],
}


def watch() -> None:
    """Register with the parts of transformers that are imported, and with the others when they will be."""
    for name in AFTER:
        if name in sys.modules:
            register(name)
    if not any(isinstance(finder, Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, Watch())


def register(name: str) -> None:
    """Import ours after the module `name`; a failure of ours must not break transformers for everybody."""
    try:
        for ours in AFTER[name]:
            importlib.import_module(f"{__name__}.{ours}")
    except Exception as error:
        warnings.warn(f"sparsify could not register with transformers ({error}); use sparsify.load", stacklevel=2)


class Watch(MetaPathFinder):
    """Finds nothing itself; has the modules above call `register` once they are executed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in AFTER:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = ThenRegister(spec.loader)
                return spec
        return None


class ThenRegister(Loader):
    """A module's own loader, and `register` after it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader  # nobody else has to know
        self.loader.exec_module(module)
        register(module.__name__)
