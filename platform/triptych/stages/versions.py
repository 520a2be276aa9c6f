"""Registered versions that a recipe names: what is known of them, and what they give its stages, before a run."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from triptych import storage
from triptych.errors import RunError, UserError
from triptych.models.adapter import adapter_facts
from triptych.models.base import fingerprint
from triptych.models.peft_files import is_whole
from triptych.models.whole_reward import trained_method
from triptych.recipe import ADAPTERS, Full, Recipe
from triptych.recipe.recipe import inheriting
from triptych.recipe.refusals import as_scorer
from triptych.recipe.spec import Path as FieldPath
from triptych.recipe.spec import dotted
from triptych.recipe.stage import Known, Reference
from triptych.registry import AdapterVersion, Registry, registry_url
from triptych.stages.artifact import check_same_base
from triptych.stages.stored_adapter import StoredAdapter
from triptych.stages.whole_model import WholeModel

START: FieldPath = ("from",)
"""The field that names what training goes on from."""


def read_known(version: AdapterVersion) -> tuple[StoredAdapter | WholeModel, Known]:
    """What training goes on from, and what its files say of it. UserError: it is damaged, or no such thing.

    The files of a whole model name no method, and those of a whole reward model do.
    """
    storage.verify(version.url)
    folder = storage.local_copy(version.url)
    if version.kind == "model" or is_whole(folder):
        own = Full() if version.kind == "model" else trained_method(folder)
        return WholeModel(version, own), Known(version.ref, version.kind, own)
    stored = StoredAdapter.read(version, version.kind, to_go_on=True)
    adapter = stored.adapter
    method, members = adapter.to_go_on[0], 1 + len(adapter.others)
    made = adapter_facts(folder).get("stage_kind")
    return stored, Known(version.ref, version.kind, method, made, adapter.labels, members)


def check_quantization(version: AdapterVersion, quantization: str | None) -> None:
    """UserError where an adapter was trained on a base in another precision; from elsewhere, none is known."""
    facts = adapter_facts(storage.local_copy(version.url))
    before = facts.get("quantization")
    if facts and before != quantization:
        raise UserError(
            f"model.quantization: {quantization or 'null'}, and {version.ref} was trained with {before or 'null'}: it "
            f"would not go on from where it ended; allowed: {before or 'null'}"
        )


def with_versions(recipe: Recipe) -> Recipe:
    """The recipe whose stages have what they inherit from registered versions, as far as these are there by now."""
    stages = dict(recipe.stages)
    for name, reference in _versions(recipe, [name for name, stage in stages.items() if stage.asks_versions]):
        try:
            version = Registry(registry_url(recipe), create=False).get(reference.ref)
            known = _known(version) if version.kind in reference.outputs else None
        except (UserError, RunError):  # `check_versions` says so
            continue
        if known is not None:
            stages[name] = stages[name].inheriting(known)
    return recipe.model_copy(update={"stages": inheriting(stages)})


def check_versions(
    recipe: Recipe, names: Collection[str], base: Path | None, warn: Callable[[str], None] | None = None
) -> None:
    """Refuse registered versions that stages start from and cannot: of another kind, base, method, or not there.

    Args:
        recipe: the recipe.
        names: its stages that are checked.
        base: folder of the base; None: it is not here, and versions are not compared with it.
        warn: told of versions that are not checked since registry or files are elsewhere; None: that is refused.

    Raises:
        UserError: stage, field and version, and what is allowed.
    """
    for name, reference in _versions(recipe, names):
        where = dotted(("stages", name, *reference.field))
        try:
            version = _found(recipe, reference.ref)
            if version is not None:
                _check_version(recipe, name, reference, version, base)
        except (NoRegistryError, RunError) as error:
            if warn is None:
                raise
            warn(f"{where}: {reference.ref} is not checked: {error}")


def _known(version: AdapterVersion) -> Known:
    """What is known of a version; of a whole model, or rows, no method is written down."""
    return read_known(version)[1] if version.kind in ADAPTERS else Known(version.ref, version.kind, Full())


class NoRegistryError(UserError):
    """There is no registry at the place that the recipe names."""


def _found(recipe: Recipe, ref: str) -> AdapterVersion | None:
    """The version in the registry; None where it is not there and this recipe may yet register it."""
    mine = ref.partition("@")[0] in {stage.register_as or f"{recipe.name}-{n}" for n, stage in recipe.stages.items()}
    try:
        registry = Registry(registry_url(recipe), create=False)
    except UserError as error:
        if mine:
            return None
        raise NoRegistryError(str(error)) from error
    try:
        return registry.get(ref)
    except UserError:
        if mine:
            return None
        raise


def _check_version(recipe: Recipe, name: str, reference: Reference, version: AdapterVersion, base: Path | None) -> None:
    if version.kind not in reference.outputs:
        where = dotted(("stages", name, *reference.field))
        hint = f" ({reference.hint})" if reference.hint else ""
        raise UserError(
            f"{where}: {version.ref} is of kind {version.kind}; allowed: {' or '.join(reference.outputs)}{hint}"
        )
    if base is not None:
        check_same_base(version, fingerprint(base, recipe.model.chat_template), recipe.model.base)
    known = _known(version)
    if fault := recipe.stages[name].refusal(reference.field, known):
        raise UserError(f"{dotted(('stages', name, *fault.path))}: {fault.message}")
    rounded = recipe.model.quantization if version.kind == "reward_model" else None
    if rounded and known.method is not None and (reason := as_scorer(known.method, rounded)):
        raise UserError(f"{dotted(('stages', name, *reference.field))}: {version.ref}: {reason}")
    if reference.field == START:
        check_quantization(version, recipe.model.quantization)


def _versions(recipe: Recipe, names: Collection[str]) -> Iterator[tuple[str, Reference]]:
    """Stages and their fields that name a registered version."""
    for name in names:
        for reference in recipe.stages[name].references():
            if "@" in reference.ref:
                yield name, reference
