"""Trainable modules hooked onto frozen host modules: the active role's module changes its host's output.

They are children of their host and called from its forward hook, so whatever shards, gathers or recomputes the host
does the same with them, and no name of the base changes.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from triptych.errors import UserError
from triptych.methods.base import Attachment


class HookedModules(nn.Module):
    """The modules of all roles on one host; at most one is active."""

    def __init__(self) -> None:
        super().__init__()
        self.roles = nn.ModuleDict()
        self.active: str | None = None


class HookedAttachment(Attachment):
    """A method's modules on several hosts, for one role."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._parts: dict[str, tuple[HookedModules, nn.Module]] = {}

    def put(self, host: nn.Module, kind: str, name: str, module: nn.Module) -> None:
        """Let `module(input, output)` replace the output of `host` while the role is active.

        The module goes where the host's parameters are, in float32, or in float64 on a host in float64. `kind` is
        one for all roles that use a method; `name` stands before the names of the module's parameters. `input` is the
        host's first argument; of an output that is a tuple only the first member is replaced.
        """
        modules, new = _modules_of(host, kind)
        if new:
            host.register_forward_hook(partial(_change, modules), with_kwargs=True)
        self._hold(host, modules, name, module)

    def put_before(self, host: nn.Module, kind: str, name: str, module: nn.Module) -> None:
        """`put`, but `module(input)` becomes the keyword argument `kind` of `host`, whose output stays its own."""
        modules, new = _modules_of(host, kind)
        if new:
            host.register_forward_pre_hook(partial(_add, modules, kind), with_kwargs=True)
        self._hold(host, modules, name, module)

    def _hold(self, host: nn.Module, modules: HookedModules, name: str, module: nn.Module) -> None:
        own = next(host.parameters())
        dtype = torch.float64 if own.dtype == torch.float64 else torch.float32
        modules.roles[self._role] = module.to(own.device, dtype).train(host.training)
        self._parts[name] = modules, module

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters, by the names of their files."""
        return {
            f"{name}.{own}": parameter
            for name, (_, module) in self._parts.items()
            for own, parameter in module.named_parameters()
        }

    def activate(self, on: bool) -> None:
        """Be a part of the model, or not."""
        for modules, _ in self._parts.values():
            if on:
                modules.active = self._role
            elif modules.active == self._role:
                modules.active = None


def sublayer(block: nn.Module, name: str, method: str) -> nn.Module:
    """A block's attention (`self_attn`) or MLP (`mlp`); UserError where it has none of that name."""
    found = dict(block.named_children()).get(name)
    if found is None:
        raise UserError(
            f"method.name: {method} stands beside self_attn and mlp, and a {type(block).__name__} has "
            f"no {name}; allowed: a method that adapts linear layers, such as lora"
        )
    return found


def _modules_of(host: nn.Module, kind: str) -> tuple[HookedModules, bool]:
    """The container of a kind of modules on a host, made where there is none, and whether it is new."""
    found = dict(host.named_children()).get(kind)
    if isinstance(found, HookedModules):
        return found, False
    new = HookedModules()
    host.add_module(kind, new)
    return new, True


def _change(
    modules: HookedModules, host: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> Any:
    if modules.active is None:
        return None
    given, module = _given(args, kwargs), modules.roles[modules.active]
    if isinstance(output, tuple):
        return (module(given, output[0]), *output[1:])
    return module(given, output)


def _add(modules: HookedModules, kind: str, host: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if modules.active is None:
        return None
    return args, dict(kwargs) | {kind: modules.roles[modules.active](_given(args, kwargs))}


def _given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found
