"""`triptych adapters export`, `push` and `merge`: what was trained, in files for other tools."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from triptych.cli.on_cluster import on_cluster
from triptych.cli.registry import DEFAULT, Ref, RegistryUrl, open_registry
from triptych.errors import UserError

if TYPE_CHECKING:
    from triptych.registry import AdapterVersion, Registry

app = typer.Typer()

BaseName = Annotated[
    str | None,
    typer.Option(
        "--base", help="Base model as other tools know it: owner/name, or a folder; default: as it was trained."
    ),
]
DropLayers = Annotated[
    int | None,
    typer.Option("--drop-layers", min=0, help="Do without the bottleneck adapters of so many first blocks."),
]


@app.command()
@on_cluster(brings="folder")
def export(
    ref: Ref,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A new folder, or URL; loads in plain peft.")],
    drop_layers: DropLayers = None,
    base: BaseName = None,
    registry: RegistryUrl = DEFAULT,
) -> None:
    """Copy a version's files, verified, to a new folder, with the name of its base and a model card."""
    from triptych import storage

    if storage.exists(folder):
        raise UserError(f"{folder} exists already: name a new folder")
    known = open_registry(registry)
    with tempfile.TemporaryDirectory(prefix="triptych-") as place:
        version = _exported(known, ref, Path(place) / "export", drop_layers, base)
        with storage.committed(folder) as staging:
            ours = shutil.ignore_patterns(storage.MANIFEST)
            shutil.copytree(Path(place) / "export", staging, dirs_exist_ok=True, ignore=ours)
    typer.echo(f"{version.ref} -> {folder}")


@app.command()
@on_cluster
def push(
    ref: Ref,
    place: Annotated[str, typer.Argument(metavar="hf://OWNER/NAME", help="Model repository of the Hugging Face hub.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a repository that is made.")] = False,
    drop_layers: DropLayers = None,
    base: BaseName = None,
    registry: RegistryUrl = DEFAULT,
) -> None:
    """Upload what `export` writes to the hub, as one commit. The token is HF_TOKEN, or that of `hf auth login`."""
    from triptych.registry.exports import push

    known = open_registry(registry)
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        version = _exported(known, ref, Path(folder) / "export", drop_layers, base)
        url = push(Path(folder) / "export", place, version.ref, public=public)
    typer.echo(f"{version.ref} -> {url}")


@app.command()
@on_cluster(brings="folder")
def merge(
    ref: Ref,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder; transformers and vLLM load it.")],
    base: Annotated[str | None, typer.Option(help="Base model; default: what the adapter was trained on.")] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        typer.Option(help="Of the weights; default: the narrowest that keeps the adapter's change."),
    ] = None,
    limit: Annotated[float, typer.Option(min=0, help="Largest change by the merge, nats a token.")] = 0.01,
    registry: RegistryUrl = DEFAULT,
) -> None:
    """Write the base with a version's adapter in its weights, as a whole model."""
    from triptych.cli.evaluation_card import measured
    from triptych.data.end_tokens import learned_ends
    from triptych.methods.merge import merge_adapter
    from triptych.models.full import write_ends
    from triptych.registry.card import Exported, trained_by, write_card
    from triptych.registry.exports import base_on_hub

    known = open_registry(registry)
    version = known.get(ref)
    if version.kind != "policy":
        raise UserError(f"{version.ref} is of kind {version.kind!r}; allowed: adapters that generate text (policy)")
    trained_on = {"base": version.base, "base_fingerprint": version.base_fingerprint}
    adapter = known.fetch(version.ref)
    found = merge_adapter(adapter, folder, base or version.base, trained_on, dtype, limit)
    write_ends(folder, learned_ends(folder))
    kept, hub = found.kept, base_on_hub(folder)
    share = f"{kept.dtype}, {kept.share:.4f} of the change kept, KL {found.divergence:.1e} nats a token"
    parents = [version, *known.ancestors(version.ref)]
    name = hub[0] if hub else None
    write_card(folder, Exported(version, parents, trained_by(adapter), name, measured(known, version), share))
    least = f", least {kept.least:.4f} in {kept.tensor}" if kept.tensor else ""
    typer.echo(f"{version.ref} -> {folder} ({kept.dtype}; KL {found.divergence:.1e} nats a token)")
    typer.echo(f"kept of the change: {kept.share:.4f}{least}", err=True)


def _exported(known: "Registry", ref: str, folder: Path, drop_layers: int | None, base: str | None) -> "AdapterVersion":
    """Write to a new folder what `export` does; the version."""
    from triptych.cli.evaluation_card import measured
    from triptych.registry.exports import check_base_name, describe

    version = known.get(ref)
    base = None if base is None else check_base_name(base, version)
    if drop_layers is None:
        known.export(version.ref, str(folder))
    else:
        from triptych.methods.adapter_drop import export_without

        export_without(known.fetch(version.ref), str(folder), drop_layers)
    if describe(folder, version, known.ancestors(version.ref), measured(known, version), base) is None:
        typer.echo(
            f"its files do not name the base: {version.base} is a name of this machine; --base gives one", err=True
        )
    return version
