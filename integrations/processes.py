"""The processes of one run, as `accelerate launch` or `torchrun` launch them, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from fastreward.errors import InputError

T = TypeVar("T")

BUCKET: Final = 1 << 24
"""Numbers that are added up at once: 64 MiB in fp32, enough to fill a link."""


class Processes:
    """This process among those of its run. What all must call, in the same order, says so.

    Args:
        device: Where the policy is: on the CPU the processes talk by gloo, on CUDA by NCCL.

    Attributes:
        rank: The number of this process.
        count: How many there are.

    Raises:
        InputError: Several were launched, and accelerate is missing.

    Example:
        >>> alone = Processes(torch.device("cpu"))
        >>> alone.rank, alone.count, alone.gather("a"), alone.share(3)
        (0, 1, ['a'], slice(0, 3, None))
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.count = 0, 1
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import PartialState  # type: ignore[import-untyped]
            except ImportError as error:
                hint = 'pip install "fastreward[trl]"'
                raise InputError("accelerate, for several processes", "none", hint) from error
            state = PartialState(cpu=device.type == "cpu")
            self.rank, self.count = state.process_index, state.num_processes

    def share(self, count: int) -> slice:
        """Return this process's part of so many items: consecutive ones, of like size, by rank."""
        return slice(*(count * rank // self.count for rank in (self.rank, self.rank + 1)))

    def gather(self, value: T) -> list[T]:
        """Return what each process hands in, by rank. All must call it; it takes what pickles."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their sums over the processes. All must call it."""
        pieces: list[Tensor] = []
        for place, tensor in enumerate(tensors if self.count > 1 else ()):
            pieces.append(tensor)
            if place + 1 == len(tensors) or sum(piece.numel() for piece in pieces) >= BUCKET:
                flat = torch.cat([piece.flatten() for piece in pieces])
                dist.all_reduce(flat)
                sums = torch.split(flat, [piece.numel() for piece in pieces])
                for piece, total in zip(pieces, sums, strict=True):
                    piece.copy_(total.view_as(piece))
                pieces = []

    def add_up_gradients(self, weights: Sequence[Tensor]) -> None:
        """Replace the gradients of weights by their sums, none counting as 0. All must call it."""
        if self.count > 1:
            for weight in weights:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            self.add_up([weight.grad for weight in weights if weight.grad is not None])

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the first process. All must call it."""
        for tensor in tensors if self.count > 1 else ():
            dist.broadcast(tensor, 0)

    def first(self, action: Callable[[], T]) -> T:
        """Have the first process do something; all get what it returns, or raises. All must call it."""
        if self.count == 1:
            return action()
        result: Any = None
        failure: Exception | None = None
        if self.rank == 0:
            try:
                result = action()
            except Exception as error:  # whatever it is, the others must not wait for ever
                failure = error
        result, failure = self.gather((result, failure))[0]
        if failure is not None:
            raise failure
        return result  # type: ignore[no-any-return]
