"""Functions of tensors that take NumPy arrays as well."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from nescio.core.errors import InputError
from nescio.core.feature_set import floats

Function = TypeVar("Function", bound=Callable[..., Tensor])
FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""Every score as a plain function, by name."""


def of_arrays(function: Function) -> Function:
    """Make a score of tensors one of arrays, too, and known by its name.

    Its first argument is a matrix of a row for each image; an array (or a list) there gives an array back, a tensor
    gives a tensor. An argument called ``pred`` holds class numbers.

    Raises (when the function is called):
        InputError: the first argument is no matrix of numbers.
    """
    names = list(inspect.signature(function).parameters)

    def tensor(name: str, value: Any, like: Any) -> Any:
        if isinstance(value, np.ndarray | list | tuple):
            value = torch.as_tensor(np.asarray(value)) if name == "pred" else floats(value, name)
            value = value.to(like.device) if isinstance(like, Tensor) else value
        is_half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if is_half else value

    @functools.wraps(function)
    def either(*values: Any, **named: Any) -> Any:
        every = dict(zip(names, values, strict=False)) | named
        first = every.get(names[0])
        every = {name: tensor(name, value, first) for name, value in every.items()}
        rows = every.get(names[0])
        if not isinstance(rows, Tensor) or rows.ndim != 2:
            shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(first).__name__
            raise InputError(
                f"{function.__name__}: expected {names[0]} with one row per image, shape (B, …), got {shape}"
            )
        scores = function(**every)
        return scores if isinstance(first, Tensor) else scores.cpu().numpy()

    FUNCTIONS[function.__name__] = either
    return either  # type: ignore[return-value]  # of tensors it is what it was, and it takes arrays, too
