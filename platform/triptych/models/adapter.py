"""Adapter folders: a method's files (peft's two where peft has a format), and triptych.json with what these do not say.

A hybrid has a folder for each part, named by its method. An ensemble's folder is its first member's; the others lie in
it as `member-1`, `member-2`, ..., each in the same form.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from peft import PeftConfig
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.artifact_kinds import kind_fields, kind_in
from triptych.errors import UserError
from triptych.models.heads import ClassHead, ScalarHead
from triptych.models.imported import read_imported
from triptych.models.peft_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FACTS,
    HEAD_WEIGHTS,
    WHOLE,
    expert_parameters,
    peft_name,
    role_name,
)
from triptych.recipe.method import Method, parts_of
from triptych.recipe.refusals import is_lora

_PREFIX = "prefix.safetensors"
_STATE = "state.safetensors"
_METHOD: TypeAdapter[Method] = TypeAdapter(Method)


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of a reward model's scores on its training answers."""

    mean: float
    std: float


@dataclass(frozen=True)
class Adapter:
    """A trained adapter as it lies in a folder."""

    method: Method
    """The recipe's method, or list of parts, under which the weights load."""
    weights: dict[str, Tensor]
    """Tensors by the names that roles use: in a hybrid, each part's method stands before its names."""
    kind: str
    """`policy`, `reward_model` or `classifier`."""
    configs: Mapping[str, PeftConfig] = field(default_factory=dict)
    """peft's configuration of each part that peft has a format for, by the part's method."""
    peft: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """The tensors of peft's file, by the part's method, where they are not the weights: keys and values in one."""
    head: dict[str, Tensor] | None = None
    """weight [1, d] and bias [1] of a reward model; weight [classes, d] of a classifier."""
    normalization: Normalization | None = None
    """Normalization of the score: of the ensemble's mean, where there is an ensemble."""
    others: tuple["Adapter", ...] = ()
    """The further members of an ensemble of reward models; its score is the mean over this one and them."""
    labels: tuple[str, ...] = ()
    """The classes of a classifier, in the order of its head."""
    trained: Method | None = None
    """The method that was trained, where its files hold another that computes the same."""
    state: Mapping[str, Tensor] | None = None
    """Tensors from which training under `trained` goes on; None: `weights`."""

    @property
    def is_lora(self) -> bool:
        """True if it is one plain LoRA of linear layers, which vLLM runs as an adapter."""
        return is_lora(self.method) and not expert_parameters(self.weights)

    @property
    def to_go_on(self) -> tuple[Method, Mapping[str, Tensor]]:
        """The method under which training goes on from it, and its tensors."""
        if self.state is None or self.trained is None:
            return self.method, self.weights
        return self.trained, self.state

    def scalar_head(self) -> ScalarHead:
        """The head of a reward model, as a module."""
        if self.head is None:
            raise UserError("this adapter has no scalar head: it is not a reward model")
        head = ScalarHead(self.head["weight"].shape[1])
        head.load(self.head["weight"], self.head["bias"])
        return head

    def class_head(self) -> ClassHead:
        """The head of a classifier, as a module."""
        if self.head is None:
            raise UserError("this adapter has no head: it is not a classifier")
        head = ClassHead(self.head["weight"].shape[1], self.head["weight"].shape[0])
        head.load(self.head["weight"])
        return head


def peft_json(config: PeftConfig) -> dict[str, Any]:
    """Content of adapter_config.json: plain JSON, no path of this machine."""
    values = config.to_dict() | {"base_model_name_or_path": None, "inference_mode": True}
    return {
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for key, value in values.items()
    }


def save_adapter(folder: Path, adapter: Adapter, about: Mapping[str, Any]) -> None:
    """Write an adapter folder; `about` (base, base_fingerprint, recipe digest) goes into triptych.json."""
    folder.mkdir(exist_ok=True)
    for name, (part, prefix) in _parts(folder, adapter.method).items():
        part.mkdir(exist_ok=True)
        if name in adapter.configs:
            config = peft_json(adapter.configs[name])
            (part / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
        own = {key.removeprefix(prefix): value for key, value in adapter.weights.items() if key.startswith(prefix)}
        in_file = {peft_name(key): value for key, value in adapter.peft.get(name, own).items()}
        _save(in_file, part / ADAPTER_WEIGHTS)
        if name in adapter.peft:
            _save(own, part / _PREFIX)
    facts: dict[str, Any] = dict(about) | kind_fields(adapter.kind) | {"method": dumped(adapter.method)}
    if adapter.state is not None:
        _save(adapter.state, folder / _STATE)
        facts["trained"] = dumped(adapter.trained)
    if adapter.head is not None:
        save_file({k: v.contiguous() for k, v in adapter.head.items()}, folder / HEAD_WEIGHTS)
    if adapter.normalization is not None:
        facts["normalization"] = asdict(adapter.normalization)
    if adapter.labels:
        facts["labels"] = list(adapter.labels)
    if adapter.others:
        facts["members"] = 1 + len(adapter.others)
    for number, member in enumerate(adapter.others, start=1):
        save_adapter(_member(folder, number), member, about)
    (folder / FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True))


def load_adapter(folder: Path, kind: str, *, to_go_on: bool = False) -> Adapter:
    """Read an adapter folder; peft's files alone are a policy.

    Args:
        folder: the folder.
        kind: `policy`, `reward_model` or `classifier`.
        to_go_on: read `state` too, where there is one.

    Raises:
        UserError: it is not of this kind; a reward model's head, normalisation or member is absent, or a classifier's
            head or labels; or files from elsewhere are not computed here.
    """
    facts = adapter_facts(folder)
    if not facts and kind != "policy":
        raise UserError(f"{folder.name}: no {FACTS}, without which peft's files are no {kind.replace('_', ' ')}")
    found = kind_in(facts) or "policy"
    if found != kind:
        raise UserError(f"{folder.name}: an adapter of kind {found!r}, where {kind!r} is needed")
    if facts.get(WHOLE):
        raise UserError(
            f"{folder.name}: a reward model that is a whole model, where an adapter is read; allowed: a reward model "
            "that is an adapter"
        )
    adapter = _load(folder, facts)
    if to_go_on and (folder / _STATE).is_file():
        adapter = replace(adapter, state=load_file(folder / _STATE), trained=parsed_method(folder, facts["trained"]))
    if kind == "policy":
        return adapter
    if kind != "reward_model":
        if not (folder / HEAD_WEIGHTS).is_file() or "labels" not in facts:
            raise UserError(f"{folder}: a classifier without its head ({HEAD_WEIGHTS}) or labels; train it again")
        return replace(adapter, head=load_file(folder / HEAD_WEIGHTS), labels=tuple(facts["labels"]))
    if not (folder / HEAD_WEIGHTS).is_file() or "normalization" not in facts:
        raise UserError(f"{folder}: a reward model without its head ({HEAD_WEIGHTS}) or normalisation; train it again")
    head, normalization = load_file(folder / HEAD_WEIGHTS), Normalization(**facts["normalization"])
    others = tuple(
        load_adapter(_member(folder, number), kind, to_go_on=to_go_on) for number in range(1, facts.get("members", 1))
    )
    return replace(adapter, head=head, normalization=normalization, others=others)


def adapter_facts(folder: Path) -> dict[str, Any]:
    """Content of an adapter's triptych.json; empty for one from elsewhere. UserError where there is no adapter."""
    if not (folder / FACTS).is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            return {}
        raise UserError(f"{folder}: no adapter, or a part of one is missing: neither {FACTS} nor {ADAPTER_CONFIG}")
    facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
    return facts


def _load(folder: Path, facts: Mapping[str, Any]) -> Adapter:
    """The method's weights and configuration; no head."""
    if "method" not in facts:
        return _imported(folder, facts)
    method = parsed_method(folder, facts["method"])
    weights: dict[str, Tensor] = {}
    configs: dict[str, PeftConfig] = {}
    peft: dict[str, dict[str, Tensor]] = {}
    for name, (part, prefix) in _parts(folder, method).items():
        if (part / ADAPTER_CONFIG).is_file():
            configs[name] = PeftConfig.from_pretrained(str(part))
        targets = getattr(configs.get(name), "target_parameters", None)
        own = {role_name(key, targets): value for key, value in load_file(part / ADAPTER_WEIGHTS).items()}
        if (part / _PREFIX).is_file():
            peft[name], own = own, load_file(part / _PREFIX)
        weights |= {f"{prefix}{key}": value for key, value in own.items()}
    return Adapter(method, weights, kind_in(facts) or "policy", configs, peft)


def _imported(folder: Path, facts: Mapping[str, Any]) -> Adapter:
    """An adapter in peft's files, of a method that no triptych.json names."""
    try:
        method, weights = read_imported(folder)
    except ValidationError as error:
        raise UserError(f"{ADAPTER_CONFIG} asks for what no method has: {error}") from error
    config = PeftConfig.from_pretrained(str(folder))
    return Adapter(method, weights, kind_in(facts) or "policy", {parts_of(method)[0].name: config})


def parsed_method(folder: Path, method: Any) -> Method:
    """A method that the triptych.json of a folder names. UserError: this version does not know it."""
    try:
        return _METHOD.validate_python(_as_written(method))
    except ValidationError as error:
        raise UserError(f"{folder}: {FACTS} names a method that this version does not know: {error}") from error


def _as_written(method: Any) -> Any:
    """A method's plain data; LoRA reached no experts when its files did not say."""
    parts = method if isinstance(method, list) else [method]
    said = [{"experts": False, **p} if isinstance(p, dict) and p.get("name") == "lora" else p for p in parts]
    return said if isinstance(method, list) else said[0]


def _parts(folder: Path, method: Method) -> dict[str, tuple[Path, str]]:
    """Method's name -> its part's folder, and what stands before the part's names."""
    parts = parts_of(method)
    if len(parts) == 1:
        return {parts[0].name: (folder, "")}
    return {part.name: (folder / part.name, f"{part.name}.") for part in parts}


def dumped(method: Method | None) -> Any:
    """A method as triptych.json has it."""
    return _METHOD.dump_python(method, mode="json") if method is not None else None


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})


def _member(folder: Path, number: int) -> Path:
    return folder / f"member-{number}"
