"""Whoever is timed. A contender has a name and prepare(case, inputs, threads), which gives something to run or raises
Unavailable with the reason."""

import importlib

# In the order of the tables. Each module has contenders(), a list.
MODULES = ("qkv_contender", "torch_contenders", "onnxruntime_contender", "openvino_contender", "jax_contender",
           "ggml_contender")


class Unavailable(Exception):
    """This contender cannot do this case; str() says why."""


class Prepared:
    """run() does the work once; context() gives what run() left, as a torch tensor [B, H, T, Dv]."""

    def __init__(self, run, context):
        self.run = run
        self.context = context


def load(names=None):
    """(contenders, {name: why it is missing}); all of them, or those named."""
    found = []
    missing = {}
    for module in MODULES:
        name = module.split("_")[0]
        try:
            candidates = importlib.import_module(f"contenders.{module}").contenders()
        except (ImportError, OSError) as error:
            missing[name] = str(error).splitlines()[0]
            continue
        found += [one for one in candidates if names is None or one.name in names]
    return found, missing
