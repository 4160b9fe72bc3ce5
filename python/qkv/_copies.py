"""What copy and pickle make the package's objects from again: calls of qkv's own functions, by name."""

import functools
import operator
from collections.abc import Mapping
from typing import Any

import qkv


def make(recipe: tuple[str, Mapping[str, Any]]) -> Any:
    """The result of qkv.<name>(**arguments)."""
    name, arguments = recipe
    return operator.attrgetter(name)(qkv)(**arguments)


def join(recipes: tuple[tuple[str, Mapping[str, Any]], ...]) -> "qkv.Mask":
    """A mask of its parts."""
    return functools.reduce(operator.and_, map(make, recipes), qkv.Mask())


def load(recipe: tuple[str, Mapping[str, Any]], state: Mapping[str, Any], training: bool) -> "qkv.nn.Module":
    """A module with its parameters."""
    module: qkv.nn.Module = make(recipe)
    module.load_state_dict(state)
    module.train(training)
    return module
