"""The table of adapters from elsewhere: `python -m tests.support.adapter_table` writes its page in docs."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.adapter_cases import CASES, untied_base
from tests.support.adapter_matrix import USES, AdapterMatrix, Found, Tried
from tests.support.tiny_model import make_tiny_model

PAGE = Path(__file__).parents[2] / "docs/reference/adapters.md"
_HEAD = """\
# Adapters from elsewhere

`triptych adapters register NAME FOLDER --base BASE` takes what peft saves, and so what Unsloth, axolotl and
LLaMA-Factory save. It checks names, widths and settings against the base, and refuses what an engine would ignore in
silence. Each row was saved by plain peft, registered, and used in every way, on a tiny Llama whose head is tied to its
embeddings (tied), or a tiny Qwen2 whose head is not, and which has biases (untied).

Figures: the largest difference from plain peft, in nats, of a token's log-probability (float32). *Served*: by vLLM, all
adapters of a base in one mixed batch. *Merged*: by `adapters merge --dtype float32`, in transformers. *Continued*: as
`from:` and a policy read it, before the first step. *Exported*: by `adapters export`, in plain peft.

Written by `python -m tests.support.adapter_table`; `tests/methods/test_adapter_matrix.py` holds it.
"""


def bases(folder: Path) -> dict[str, Path]:
    """The models that adapters are saved on, written to a folder."""
    make_tiny_model(folder / "tied")
    untied_base(folder / "untied", folder / "tied")
    return {name: folder / name for name in ("tied", "untied")}


def measured(folder: Path) -> dict[str, Tried]:
    """Every case, with every use."""
    matrix = AdapterMatrix(folder, bases(folder))
    for name in CASES:
        matrix.register(name)
    kept = [name for name, tried in matrix.tried.items() if tried.refused is None]
    for name in kept:
        for use in USES[1:]:
            matrix.use(name, use)
    for base in ("tied", "untied"):
        matrix.serve([name for name in kept if CASES[name].base == base], base)
    return matrix.tried


def page(found: Mapping[str, Tried]) -> str:
    """The page."""
    notes: dict[str, int] = {}

    def cell(value: Found) -> str:
        if isinstance(value, float):
            return "0" if value == 0 else f"{value:.0e}"
        return f"no ({notes.setdefault(value, len(notes) + 1)})"

    lines = [_HEAD, "## Kept", "", f"| adapter | base | effect | {' | '.join(USES)} |", f"|{' --- |' * 7}"]
    for name, tried in found.items():
        if tried.refused is None:
            cells = " | ".join(cell(tried.uses[use]) for use in USES)
            kept = f"{name}, kept as plain LoRA" if tried.converted else name
            lines.append(f"| {kept} | {CASES[name].base} | {tried.effect:.1f} | {cells} |")
    lines += ["", *(f"{number}. {note}" for note, number in notes.items())]
    lines += ["", "## Refused at registration", "", "| adapter | message |", "| --- | --- |"]
    lines += [f"| {name} | {tried.refused} |" for name, tried in found.items() if tried.refused is not None]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with TemporaryDirectory() as place:
        PAGE.write_text(page(measured(Path(place))), encoding="utf-8")
