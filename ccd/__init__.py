__version__ = "0.2.0"

_MODULES = dict(fit="run", label="run", load="predict")  # what `from ccd import fit` finds where; read when it is asked for

def __getattr__(name):
    if name not in _MODULES: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

def __dir__(): return sorted([*globals(), *_MODULES])
