"""`triptych adapters`: names, versions, aliases and lineage of what was trained."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.cli import adapter_exports
from triptych.cli.on_cluster import on_cluster
from triptych.cli.registry import DEFAULT, AsJson, Ref, RegistryUrl, is_endpoint, open_registry, print_table
from triptych.errors import RunError, UserError

if TYPE_CHECKING:
    from triptych.models.adapter_effect import EffectReport
    from triptych.registry import AdapterVersion, RegisteredAdapter, Registry
    from triptych.serve.capabilities import Capabilities

app = typer.Typer(help="Trained adapters: versions, aliases, lineage.", no_args_is_help=True)
app.add_typer(adapter_exports.app)

_ENDPOINT = "http://127.0.0.1:8000/v1"
AdapterName = Annotated[str, typer.Argument(metavar="NAME", help="Name of an adapter.")]


@app.command("list")
@on_cluster
def list_(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show the versions of this adapter.")] = None,
    registry: RegistryUrl = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """All adapters, or all versions of one."""
    known = open_registry(registry)
    if name is None:
        _list_adapters(known, as_json)
    else:
        _list_versions(known, name, as_json)


@app.command()
@on_cluster
def show(ref: Ref, registry: RegistryUrl = DEFAULT, as_json: AsJson = False) -> None:
    """One version: where it lies, what it was made from, what was made from it."""
    known = open_registry(registry)
    version = known.get(ref)
    facts = _fields(known, version) | {
        "ancestors": [one.ref for one in known.ancestors(version.ref)],
        "descendants": [one.ref for one in known.descendants(version.ref)],
        "used_by": known.users(version.ref),
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        typer.echo(f"{key:17} {value if isinstance(value, str) else json.dumps(value)}")


@app.command()
@on_cluster(sends="folder")
def register(
    name: AdapterName,
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Adapter files: a folder, a URL, or hf://owner/name[@revision].")
    ],
    kind: Annotated[
        str | None,
        typer.Option(help="policy, reward_model, classifier, ...; default: by triptych.json."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base model; default: what triptych.json says.")] = None,
    parent: Annotated[list[str] | None, typer.Option(metavar="REF", help="Made from; may be repeated.")] = None,
    for_serving: Annotated[bool, typer.Option(help="Refuse what vLLM cannot serve.")] = False,
    max_rank: Annotated[int, typer.Option(min=1, max=512, help="Largest LoRA rank that counts as servable.")] = 64,
    artifacts: Annotated[
        str | None, typer.Option(metavar="URL", envvar="TRIPTYCH_ARTIFACTS", help="Where adapters are kept.")
    ] = None,
    registry: RegistryUrl = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Add a folder as the next version of NAME."""
    from triptych import __version__
    from triptych.artifact_kinds import current_kind, kind_in
    from triptych.registry.artifacts import read_note
    from triptych.registry.from_hub import local_folder
    from triptych.serve.capabilities import Capabilities

    engine = Capabilities(max_rank)
    with local_folder(folder) as (place, source):
        note = read_note(place)
        base, fingerprint, folder_of_base = _base(base, note)
        known = open_registry(registry, artifacts, create=True)
        version = known.register(
            name,
            place,
            kind=current_kind(kind) if kind else kind_in(note) or "policy",
            base=base,
            base_fingerprint=fingerprint,
            lineage={"source": source, "code": __version__, "parents": parent or []},
            metrics={},
            for_serving=engine.why_not if for_serving else None,
            prepare=partial(_prepare, base=folder_of_base),
            max_rank=max_rank,
        )
    if as_json:
        typer.echo(json.dumps(_fields(known, version, engine), indent=2))
        return
    typer.echo(version.ref)
    if (why_not := _why_not(known, version, engine)) is not None:
        typer.echo(f"{version.ref} is kept, but cannot be served: {why_not}", err=True)


@app.command()
def verify(
    ref: Ref,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Triptych's or a plain vLLM's; its key in TRIPTYCH_KEY_PATH or TRIPTYCH_KEY. Default: the registry's "
            f"endpoint, else {_ENDPOINT}; with --base: none is asked.",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Measure the adapter on this base model first, in float32, and keep the values.")
    ] = None,
    registry: RegistryUrl = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Prove that what answers as REF is what was trained; exit code 1 if it is not.

    The log-probabilities that the learner measured are compared with the endpoint's, for the adapter and for its base.
    """
    known = open_registry(registry)
    version = known.get(ref)
    if base is not None:
        _measure(known, version, base)
        typer.echo(f"{version.ref} was measured on {base}", err=True)
    url = endpoint or (registry if is_endpoint(registry) else None if base else _ENDPOINT)
    if url is not None:
        report = _compared(known, version, ref, url)
        if as_json:
            typer.echo(json.dumps({"ref": version.ref, "model": ref, "endpoint": url} | asdict(report), indent=2))
        elif report.looks_like == "right":
            typer.echo(f"{ref} is {version.ref}: {report.sentence}")
        if report.looks_like != "right":
            raise RunError(f"{url}: {ref} is not proved to be {version.ref}: {report.sentence}")


@app.command()
@on_cluster
def alias(
    ref: Ref,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="`default` is what the bare name means.")],
    delete: Annotated[bool, typer.Option("--delete", help="Remove the alias; REF is then the bare name.")] = False,
    registry: RegistryUrl = DEFAULT,
) -> None:
    """Let NAME@ALIAS mean a version."""
    known = open_registry(registry)
    if delete:
        known.drop_alias(ref, name)
        typer.echo(f"removed {ref}@{name}")
        return
    version = known.get(ref)
    known.alias(version.name, name, version.version)
    typer.echo(f"{version.name}@{name} -> {version.ref}")


@app.command()
@on_cluster
def rollback(
    name: AdapterName,
    alias: Annotated[str, typer.Argument(metavar="[ALIAS]", help="Which alias to take back.")] = "default",
    registry: RegistryUrl = DEFAULT,
) -> None:
    """Point an alias at the version it had before."""
    version = open_registry(registry).rollback(name, alias)
    typer.echo(f"{name}@{alias} -> {version.ref}")


@app.command()
@on_cluster
def remove(
    ref: Ref,
    force: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Repeat REF as NAME@VERSION: remove it although it is in use, with aliases."),
    ] = None,
    registry: RegistryUrl = DEFAULT,
) -> None:
    """Remove a version and its files; refused while an alias or another version's lineage points at it."""
    known = open_registry(registry)
    version = known.get(ref)
    users = known.users(version.ref)
    if force not in (None, version.ref):
        raise UserError(f"--force names {force}, but what would be removed is {version.ref}")
    if users and force is None:
        raise UserError(f"{version.ref} is used by {', '.join(users)}; to remove it still: --force {version.ref}")
    known.remove(version.ref, force=force is not None)
    typer.echo(f"removed {version.ref}")


def _measure(known: "Registry", version: "AdapterVersion", base: str) -> None:
    """Measure a version's effect on a base model that is loaded here, and keep it in the registry."""
    from triptych.models.adapter_probes import probes_by_peft
    from triptych.models.base import fingerprint, resolve_base
    from triptych.models.identity import difference
    from triptych.recipe.model import Model
    from triptych.registry.artifacts import read_note

    adapter, folder = known.fetch(version.ref), resolve_base(Model(base=base))
    template = _template(read_note(str(adapter)))
    if reason := difference(version.base_fingerprint, fingerprint(folder, template)):
        raise UserError(f"--base {base}: {version.ref} was trained on {version.base}, {reason}")
    known.add_probes(version.ref, probes_by_peft(adapter, folder))


def _compared(known: "Registry", version: "AdapterVersion", model: str, url: str) -> "EffectReport":
    """Comparison of an endpoint's answers as a model with the version that it should be."""
    from triptych.credentials import sends_in_clear
    from triptych.models.adapter_effect import UnusableError, judge
    from triptych.serve.adapter_effect import version_probes
    from triptych.serve.endpoint_client import EndpointClient

    effects = version_probes(known, version)
    if effects.probes is None:
        raise UserError(f"{version.ref} came without measured values: give its base model once, as --base")
    client = EndpointClient(url)
    if client.sends_key and sends_in_clear(url):
        typer.echo(f"warning: the key travels to {url} in the clear; use https, or a port-forward", err=True)
    sequences, beside = effects.probes.sequences, client.base_of(model)
    base = None if beside is None else client.logprobs(beside, sequences)
    try:
        return judge(effects.probes, client.logprobs(model, sequences), base, effects.others)
    except UnusableError as error:
        raise UserError(f"{url}: its log-probabilities {error}") from None


def _list_adapters(known: "Registry", as_json: bool) -> None:
    found = [(adapter, known.get(f"{adapter.name}@{adapter.plain}")) for adapter in known.adapters()]
    if as_json:
        facts = [
            asdict(adapter) | {"plain": adapter.plain, "servable": _why_not(known, version) is None}
            for adapter, version in found
        ]
        typer.echo(json.dumps(facts, indent=2, default=str))
        return
    rows = [
        (adapter.name, version.ref, version.kind, version.base, _served(known, version), _aliases(adapter))
        for adapter, version in found
    ]
    print_table(("name", "means", "kind", "base", "servable", "aliases"), rows)


def _list_versions(known: "Registry", name: str, as_json: bool) -> None:
    versions = known.versions(name)
    if as_json:
        typer.echo(json.dumps([_fields(known, version) for version in versions], indent=2))
        return
    rows = [
        (
            version.ref,
            version.kind,
            f"{version.created_at:%Y-%m-%d %H:%M}",
            version.sha256[:12],
            _served(known, version),
        )
        for version in versions
    ]
    print_table(("version", "kind", "created", "sha256", "servable"), rows)


def _fields(known: "Registry", version: "AdapterVersion", engine: "Capabilities | None" = None) -> dict[str, Any]:
    """Fields of a version that --json prints."""
    fields = {"ref": version.ref} | asdict(version) | {"created_at": version.created_at.isoformat()}
    del fields["recorded_why_not"]
    why_not = _why_not(known, version, engine)
    return fields | {"servable": why_not is None, "why_not": why_not}


def _why_not(known: "Registry", version: "AdapterVersion", engine: "Capabilities | None" = None) -> str | None:
    """The reason why an engine (default: vLLM with LoRA) cannot serve the version; None if it can."""
    from triptych.registry.facts import UnreadableError
    from triptych.serve.capabilities import Capabilities

    try:
        facts = known.facts(version.ref)
    except (UserError, UnreadableError):  # an endpoint of the version before, or one of its artifacts that is gone
        return version.recorded_why_not
    return (engine or Capabilities()).why_not(version.kind, facts)


def _served(known: "Registry", version: "AdapterVersion") -> str:
    why_not = _why_not(known, version)
    return "yes" if why_not is None else f"no: {why_not}"


def _aliases(adapter: "RegisteredAdapter") -> str:
    return " ".join(f"{alias}={version}" for alias, version in sorted(adapter.aliases.items()))


def _base(base: str | None, note: dict[str, object]) -> tuple[str, str, Path | None]:
    """Name and fingerprint of the base, and its folder where it is here.

    They are those of the model that `--base` names, or else as the folder's note has them.
    """
    from triptych.models.base import base_here, fingerprint, resolve_base
    from triptych.models.identity import difference
    from triptych.recipe.model import Model

    template = _template(note)
    if base is not None:
        folder = resolve_base(Model(base=base))
        return base, fingerprint(folder, template), folder
    if not isinstance(note.get("base"), str) or not isinstance(note.get("base_fingerprint"), str):
        raise UserError("--base: the folder's triptych.json does not say which base model the adapter fits")
    name, noted = str(note["base"]), str(note["base_fingerprint"])
    here = base_here(Model(base=name))
    if here is not None and difference(noted, fingerprint(here, template)):
        here = None  # another model of that name
    return name, noted, here


def _template(note: dict[str, object]) -> str | None:
    template = note.get("chat_template")
    return template if isinstance(template, str) else None


def _prepare(folder: Path, base: Path | None) -> None:
    """Rewrite an adapter as a plain LoRA where one computes the same; check that it fits the base, if that is here."""
    from triptych.methods.plain_lora import as_plain_lora
    from triptych.models.lora_fit import check_lora_fit

    if was := as_plain_lora(folder, base):
        typer.echo(f"{was} is kept as the plain LoRA that computes the same", err=True)
    check_lora_fit(folder, base)
