"""Adapters that the trials of a sweep start from: registered versions, copied into the registry of the sweep.

Trials register what comes out beside their runs, and never in the registry of the recipe; so what they start from has
to lie there too.
"""

import json

from triptych import storage
from triptych.errors import UserError
from triptych.observe.progress import Progress
from triptych.recipe import Recipe, Storage
from triptych.recipe.spec import dotted
from triptych.recipe.stage import Reference
from triptych.registry import AdapterVersion, Registry, registry_url
from triptych.stages.artifact import check_gate, check_same_base, registered, summary
from triptych.stages.run import stage_context
from triptych.stages.versions import START

_FILE = "parents.json"


def unfit_reference(references: tuple[Reference, ...]) -> Reference | None:
    """The first reference of a stage that trials cannot have: another stage's data, or what training goes on from."""
    return next((one for one in references if not one.versions or one.field == START), None)


def parents_of(recipe: Recipe) -> dict[str, AdapterVersion]:
    """Key of each field of the swept stage that names an adapter -> the registered version that it means.

    Raises:
        UserError: a stage that it starts from has not run, there is no such version, or it is of another base.
        RunError: such a stage falls short of its gate.
    """
    sweep = recipe.sweep
    assert sweep is not None
    references = recipe.trained[sweep.stage].references()
    if not references:
        return {}
    ctx = stage_context(recipe, sweep.stage, Progress(None))
    found = {}
    for reference in references:
        if reference.ref in recipe.stages and summary(ctx.run, reference.ref) is None:
            raise UserError(
                f"sweep.stage: trials of {sweep.stage} start from {reference.ref}, which is not done: run it first "
                f"(`triptych run` with `--stage {reference.ref}`), or name a registered version"
            )
        version = registered(ctx, reference.ref)
        if version.kind not in reference.outputs:
            field, fitting = dotted(("stages", sweep.stage, *reference.field)), " or ".join(reference.outputs)
            raise UserError(f"{field}: {version.ref} is a {version.kind}; allowed: a {fitting}")
        check_same_base(version, ctx.base_fingerprint, recipe.model.base)
        if reference.ref in recipe.stages:
            check_gate(reference.ref, recipe.stages[reference.ref], version.metrics)
        found[dotted(("stages", sweep.stage, *reference.field))] = version
    return found


def copy_parents(recipe: Recipe, folder: str) -> dict[str, str]:
    """Copy what trials start from into the registry of the sweep in `folder`: values of these keys for every trial.

    A copy that is there already stays.

    Raises:
        UserError, RunError: as `parents_of`; or the sweep was begun from other adapters.
    """
    parents = parents_of(recipe)
    if not parents:
        return {}
    _compare(storage.join(folder, _FILE), {key: version.sha256 for key, version in parents.items()})
    own = recipe.model_copy(update={"storage": Storage(runs=folder)})
    registry = Registry(registry_url(own), storage.join(folder, "artifacts"))
    return {key: _copied(registry, version).ref for key, version in parents.items()}


def _compare(url: str, digests: dict[str, str]) -> None:
    """Write down what the trials start from, or compare it with what earlier ones started from."""
    before = json.loads(storage.read_bytes(url)) if storage.exists(url) else digests
    changed = [key for key in digests if before.get(key) != digests[key]]
    if changed:
        raise UserError(
            f"{url}: the trials of this sweep started from another {changed[0]}; give the recipe another `name`, or "
            "remove that folder to sweep again"
        )
    storage.write_bytes(url, json.dumps(digests).encode())


def _copied(registry: Registry, version: AdapterVersion) -> AdapterVersion:
    names = {adapter.name for adapter in registry.adapters()}
    for known in registry.versions(version.name) if version.name in names else ():
        if known.sha256 == version.sha256:
            return known
    copied = registry.register(
        version.name,
        version.url,
        kind=version.kind,
        base=version.base,
        base_fingerprint=version.base_fingerprint,
        lineage={"copy_of": version.ref},
        metrics=version.metrics,
    )
    if copied.sha256 != version.sha256:
        raise UserError(f"{version.ref}: its copy for the sweep has other content; is its folder damaged?")
    return copied
