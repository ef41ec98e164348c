"""Gates: components of a combined reward that count only where another one reaches a threshold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Literal, TypeAlias, get_args

from torch import Tensor

from fastreward.errors import InputError
from fastreward.rewards.completion import describe

Undecided = Literal["shut", "open", "none"]


@dataclass(frozen=True)
class Gate:
    """On what another component must reach for one to count.

    Args:
        component: Name of the component that decides.
        at_least: What it must reach, in its own units, before weights.
        otherwise: What the gated component is worth where it does not.
        undecided: What happens where the component that decides has no value (``None``): ``"shut"`` treats it
            as one that does not reach it, ``"open"`` lets the gated component count, and ``"none"`` makes it
            ``None``.

    Raises:
        InputError: An argument is not what it should be.

    Example:
        >>> Gate("answer_reward", at_least=0.5)
        Gate(component='answer_reward', at_least=0.5, otherwise=0.0, undecided='shut')
    """

    component: str
    at_least: float = 1.0
    otherwise: float = 0.0
    undecided: Undecided = "shut"

    def __post_init__(self) -> None:
        if not isinstance(self.component, str):
            raise InputError("a component's name in Gate", describe(self.component), "Pass its __name__.")
        for name, value in (("at_least", self.at_least), ("otherwise", self.otherwise)):
            if not is_number(value):
                raise InputError(f"a finite number as {name} of Gate", describe(value), "Correct it.")
        if self.undecided not in get_args(Undecided):
            raise InputError(
                "'shut', 'open' or 'none' as undecided of Gate", describe(self.undecided), "Correct the name."
            )


Gates: TypeAlias = Mapping[str, "str | Gate"]
"""For each component that is gated, the name of the one that decides, or a `Gate`."""


def read_gates(gates: object, names: tuple[str, ...]) -> dict[str, Gate]:
    """Check gates and bring them into order.

    Args:
        gates: For each gated component, by name, the name of the one that decides, or a `Gate`.
        names: Of all components.

    Returns:
        By gated component its gate; each decider's own gate comes before those that it decides.

    Raises:
        InputError: A name is unknown, or gates go in a circle.

    Example:
        >>> list(read_gates({"a": "b", "b": Gate("c", at_least=0.5)}, ("a", "b", "c")))
        ['b', 'a']
    """
    if not isinstance(gates, Mapping):
        raise InputError(
            "a mapping from component to component, or to a Gate, as gates",
            describe(gates),
            "Pass for instance gates={'semantic_reward': 'format_reward'}.",
        )
    require_known(gates, names, "gates")
    read = {name: gate if isinstance(gate, Gate) else Gate(gate) for name, gate in gates.items()}
    require_known([gate.component for gate in read.values()], names, "gates")
    try:
        order = TopologicalSorter({name: [gate.component] for name, gate in read.items()}).static_order()
        return {name: read[name] for name in order if name in read}
    except CycleError as error:
        raise InputError(
            "gates that do not go in a circle",
            " → ".join(reversed(error.args[1])),
            "Let one of these components decide freely.",
        ) from None


def close_gates(components: Tensor, names: tuple[str, ...], gates: Mapping[str, Gate]) -> Tensor:
    """Replace what does not count.

    Args:
        components: [N, K], NaN for ``None``.
        names: K names.
        gates: As `read_gates` returns them.

    Returns:
        [N, K]: of a gated component its own value where the gate is open and `Gate.otherwise` where it is
        shut. A component without a value stays without.

    Example:
        >>> import torch
        >>> gates = read_gates({"meaning": "format"}, ("meaning", "format"))
        >>> close_gates(torch.tensor([[0.8, 1.0], [0.9, 0.0]]), ("meaning", "format"), gates)
        tensor([[0.8000, 1.0000],
                [0.0000, 0.0000]])
    """
    gated = components.clone()
    for name, gate in gates.items():
        decider, column = gated[:, names.index(gate.component)], gated[:, names.index(name)]
        unknown = decider.isnan()
        shut = (decider < gate.at_least) | (unknown if gate.undecided == "shut" else False)
        none = column.isnan() | (unknown if gate.undecided == "none" else False)
        gated[:, names.index(name)] = column.masked_fill(shut, gate.otherwise).masked_fill(none, math.nan)
    return gated


def require_known(named: Iterable[object], names: tuple[str, ...], what: str) -> None:
    """Raise an `InputError` unless all of `named` are among `names`; `what` is the argument's name."""
    unknown = [name for name in named if name not in names]
    if unknown:
        raise InputError(
            f"names among {', '.join(names)} in {what}", describe(unknown[0]), "Use the rewards' __name__."
        )


def is_number(value: object) -> bool:
    """Say whether it is a finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
