"""Small modules beside a frozen one: each belongs to a role, and the active role's changes the frozen one's output.

They are children of the module that they stand beside, called from its forward hook: so whoever shards, gathers or
recomputes that module does the same with them, and no name of the base changes.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from triptych.errors import UserError
from triptych.methods.base import Attachment


class Beside(nn.Module):
    """The modules of all roles beside one host; at most one is active."""

    def __init__(self) -> None:
        super().__init__()
        self.roles = nn.ModuleDict()
        self.active: str | None = None


class ModulesBeside(Attachment):
    """What a method has put beside several hosts for one role."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._parts: dict[str, tuple[Beside, nn.Module]] = {}

    def put(self, host: nn.Module, kind: str, name: str, module: nn.Module) -> None:
        """Let `module(input, output)` replace the output of `host` while the role is active.

        The module goes where the host's parameters are, in float32, or in float64 beside a host in float64. `kind` is
        one for all roles that use a method; `name` stands before the names of the module's parameters. `input` is the
        host's first argument; of an output that is a tuple only the first member is replaced.
        """
        beside, new = _beside(host, kind)
        if new:
            host.register_forward_hook(partial(_change, beside), with_kwargs=True)
        self._hold(host, beside, name, module)

    def put_before(self, host: nn.Module, kind: str, name: str, module: nn.Module) -> None:
        """`put`, but `module(input)` becomes the keyword argument `kind` of `host`, whose output stays its own."""
        beside, new = _beside(host, kind)
        if new:
            host.register_forward_pre_hook(partial(_add, beside, kind), with_kwargs=True)
        self._hold(host, beside, name, module)

    def _hold(self, host: nn.Module, beside: Beside, name: str, module: nn.Module) -> None:
        own = next(host.parameters())
        dtype = torch.float64 if own.dtype == torch.float64 else torch.float32
        beside.roles[self._role] = module.to(own.device, dtype).train(host.training)
        self._parts[name] = beside, module

    def parameters(self) -> dict[str, nn.Parameter]:
        """See Attachment."""
        return {
            f"{name}.{own}": parameter
            for name, (_, module) in self._parts.items()
            for own, parameter in module.named_parameters()
        }

    def activate(self, on: bool) -> None:
        """See Attachment."""
        for beside, _ in self._parts.values():
            if on:
                beside.active = self._role
            elif beside.active == self._role:
                beside.active = None


def sublayer(block: nn.Module, name: str, method: str) -> nn.Module:
    """A block's attention (`self_attn`) or MLP (`mlp`); UserError where it has none of that name."""
    found = dict(block.named_children()).get(name)
    if found is None:
        raise UserError(
            f"method.name: {method} stands beside self_attn and mlp, and a {type(block).__name__} has "
            f"no {name}; allowed: a method that adapts linear layers, such as lora"
        )
    return found


def _beside(host: nn.Module, kind: str) -> tuple[Beside, bool]:
    """What holds the modules of a kind beside a host, and whether it is new."""
    found = dict(host.named_children()).get(kind)
    if isinstance(found, Beside):
        return found, False
    new = Beside()
    host.add_module(kind, new)
    return new, True


def _change(beside: Beside, host: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    if beside.active is None:
        return None
    given, module = _given(args, kwargs), beside.roles[beside.active]
    if isinstance(output, tuple):
        return (module(given, output[0]), *output[1:])
    return module(given, output)


def _add(beside: Beside, kind: str, host: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if beside.active is None:
        return None
    return args, dict(kwargs) | {kind: beside.roles[beside.active](_given(args, kwargs))}


def _given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found
