"""Find the classes of the installed river, and write them into the unpickler's list.

``python tests/river_names.py`` adds what is missing to `streamadapt.state.river_names`. It removes
nothing: a name that this version of river does not have may be in a checkpoint of another one.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import river

from streamadapt.state.river_names import RIVER_CLASSES

# Subpackages and parts of them that open files, reach the network, need other libraries, or serve
# river's own tests.
NEVER_LOADED = {
    *("api", "checks", "compat", "context_managers", "dataframe", "datasets", "envs"),
    *("evaluate", "misc", "neural_net", "pandas", "pretty", "stream", "test"),
}

# Concrete classes of river of which no object holds an instance: bases of others, types for
# annotations, a metaclass, and generators of parameters.
NEVER_STORED = {
    "river.base.base": "Base",
    "river.base.ensemble": "Ensemble WrapperEnsemble",
    "river.base.estimator": "Estimator EstimatorMeta",
    "river.base.transformer": "BaseTransformer SupervisedTransformer Transformer",
    "river.base.typing": ("Learner Predictor SupportsComparisonGreater SupportsComparisonLesser"),
    "river.base.drift_detector": "_BaseDriftAndWarningDetector _BaseDriftDetector",
    "river.covariance.ewa": "_EWMatrix",
    "river.ensemble.bagging": "BaseBagging",
    "river.ensemble.streaming_random_patches": "BaseSRPEnsemble BaseSRPEstimator",
    "river.facto.base": "BaseFM",
    "river.facto.ffm": "FFM",
    "river.facto.fm": "FM",
    "river.facto.fwfm": "FwFM",
    "river.facto.hofm": "HOFM",
    "river.feature_extraction.vectorize": "VectorizerMixin",
    "river.imblearn.hard_sampling": "HardSampling",
    "river.linear_model.base": "GLM",
    "river.linear_model.pa": "BasePA",
    "river.multioutput.chain": "BaseChain",
    "river.neighbors.base": "DistanceFunc",
    "river.optim.base": "Optimizer",
    "river.utils.rolling": "BaseRolling Rollable",
}


def modules() -> Iterator[str]:
    """The modules of river whose objects may be stored."""
    for found in pkgutil.walk_packages(river.__path__, "river."):
        parts = found.name.split(".")
        if not NEVER_LOADED.intersection(parts) and not any(p.startswith("test_") for p in parts):
            yield found.name


def stored_classes() -> dict[str, set[str]]:
    """The classes of the installed river of which an object may hold an instance, by module."""
    found: dict[str, set[str]] = {}
    names = [*modules(), *(m for m in RIVER_CLASSES if m.startswith("river._river_rust."))]
    for module in names:
        for name in _classes(importlib.import_module(module), module):
            if name not in NEVER_STORED.get(module, "").split():
                found.setdefault(module, set()).add(name)
    return found


def _classes(owner: object, module: str, inside: str = "") -> Iterator[str]:
    for name, cls in list(vars(owner).items()):
        if isinstance(cls, type) and (cls.__module__, cls.__qualname__) == (module, inside + name):
            if not inspect.isabstract(cls) and not issubclass(cls, BaseException):
                yield inside + name
            yield from _classes(cls, module, f"{inside}{name}.")


def written(classes: dict[str, set[str]]) -> str:
    """The list as source code, in the form that ruff keeps."""
    lines = []
    for module, names in sorted(classes.items()):
        line = f'    "{module}": "{" ".join(sorted(names))}",'
        if len(line) < 100:
            lines.append(line)
            continue
        parts, row = [], ""
        for name in sorted(names):
            if len(row) + len(name) > 80:
                parts.append(row)
                row = ""
            row += f"{name} "
        parts.append(row.rstrip())
        lines.append(f'    "{module}": (')
        lines += [f'        "{part}"' for part in parts]
        lines.append("    ),")
    return "\n".join(lines)


def main() -> None:
    """Add the classes of the installed river to the list."""
    import streamadapt.state.river_names as listed

    merged = {module: set(names.split()) for module, names in RIVER_CLASSES.items()}
    for module, names in stored_classes().items():
        merged.setdefault(module, set()).update(names)
    path = Path(listed.__file__)
    text = path.read_text()
    head, start, rest = text.partition("RIVER_CLASSES = {\n")
    _, end, tail = rest.partition("}\n")
    path.write_text(f"{head}{start}{written(merged)}\n{end}{tail}")
    print(f"{path}: {sum(map(len, merged.values()))} classes")


if __name__ == "__main__":
    main()
