"""Base models: from the name in a recipe to a local folder, and from there to a tokenizer or a frozen model."""

import difflib
import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.cache import cache_dir
from triptych.errors import UserError
from triptych.models import demo
from triptych.models.identity import joined, tokenizer_digest, tokenizer_files
from triptych.models.peft_files import MODEL_WEIGHTS
from triptych.models.weights import INDEX, files_of, weight_files
from triptych.recipe.model import Model, Quantization
from triptych.storage import digest_of, write_bytes

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

BUILT_IN = {demo.NAME: demo.demo_model}
"""Built-in name -> what makes its folder."""

_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
_SHAPE_KEYS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
)


def resolve_base(model: Model) -> Path:
    """The local Hugging Face folder (config.json, safetensors, tokenizer) of the recipe's base.

    Raises UserError when `model.base` is none of: a built-in name, a folder, a Hugging Face id that can be reached.
    """
    name = model.base
    allowed = f"allowed are: a built-in name ({', '.join(BUILT_IN)}), a Hugging Face id (owner/name), a local folder"
    if name in BUILT_IN:
        return BUILT_IN[name]()
    for folder in _places(name):
        if folder.is_dir():
            return _checked(folder.resolve(), name)
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        near = difflib.get_close_matches(name.lower(), BUILT_IN, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"model.base: no folder and no built-in model is called {name!r}.{hint} {allowed}")
    return _checked(_snapshot(model, allowed), name)


def base_here(model: Model) -> Path | None:
    """The base's folder where it, or its tokenizer, is on this machine already: nothing is fetched, made or checked."""
    if model.base in BUILT_IN:
        return demo.made()
    for folder in _places(model.base):
        if folder.is_dir():
            return folder.resolve()
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(model.base, revision=model.revision, allow_patterns=_FILES, local_files_only=True)
        )
    except (OSError, ValueError):  # not fetched yet, or no id
        return None


def _places(name: str) -> list[Path]:
    """Candidate paths of a model folder: a relative one also in the folder that Ray gave a job on this node.

    Ray Train's workers have yet another working folder; the job's is on their PYTHONPATH.
    """
    jobs = os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.environ.get("RAY_JOB_ID") else []
    return [Path(name).expanduser(), *(Path(root, name) for root in jobs if root)]


def _snapshot(model: Model, allowed: str) -> Path:
    """Downloads a Hugging Face id, or takes what an earlier download left where the hub cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    files = [*_FILES, "*.py"] if model.trust_remote_code else _FILES
    where = f"{model.base!r}" + (f" at revision {model.revision!r}" if model.revision else "")
    try:
        folder = Path(snapshot_download(model.base, revision=model.revision, allow_patterns=files))
        index = folder / INDEX
        weights = files_of(json.loads(index.read_text(encoding="utf-8")), index) if index.is_file() else [MODEL_WEIGHTS]
        snapshot_download(model.base, revision=model.revision, allow_patterns=weights)
        return folder
    except HFValidationError as error:
        raise UserError(f"model.base: {where} is no valid Hugging Face id ({error}); {allowed}") from error
    except HfHubHTTPError as error:
        raise UserError(f"model.base: the Hugging Face hub refused {where}: {error}; {allowed}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"model.base: {where} is neither a folder nor in the local Hugging Face cache, and the hub cannot be "
            f"reached; {allowed}"
        ) from error
    except OSError as error:
        raise UserError(f"model.base: cannot download {where}: {error}") from error


def _checked(folder: Path, name: str) -> Path:
    if not (folder / "config.json").is_file():
        raise UserError(f"model.base: {name}: no config.json in {folder}")
    weight_files(folder)
    return folder


def model_tokenizer(path: Path, model: Model) -> "PreTrainedTokenizerBase":
    """The tokenizer in the folder of a recipe's base, with the recipe's chat template; as `load_tokenizer`."""
    return load_tokenizer(path, trust_remote_code=model.trust_remote_code, chat_template=model.chat_template)


def load_tokenizer(
    path: Path, *, trust_remote_code: bool = False, chat_template: str | None = None
) -> "PreTrainedTokenizerBase":
    """The folder's tokenizer, with a chat template, that which is given or its own, and a token to pad with.

    Raises:
        UserError: there is no usable tokenizer, no chat template, or no end token.
    """
    tokenizer = plain_tokenizer(path, trust_remote_code=trust_remote_code)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise UserError(
            f"model.base: the tokenizer in {path} has no chat template; use an instruct model, or give "
            "model.chat_template"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.base: the tokenizer in {path} names no end token (eos_token)")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = _padding_token(tokenizer)
    return tokenizer


def plain_tokenizer(path: Path, *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """The folder's tokenizer as it is, for text that is no chat; UserError: there is no usable one."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"model.base: no usable tokenizer in {path}: {error}") from error
    return tokenizer


def _padding_token(tokenizer: "PreTrainedTokenizerBase") -> str:
    """An existing special token; the vocabulary never grows.

    Padding is told by the mask, so the end token serves where there is no other: it is learned all the same.
    """
    special = [
        str(token)
        for index, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and index not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
    ]
    likely = [token for token in special if "pad" in token.lower()] + [t for t in special if "endoftext" in t]
    return [*likely, *special, tokenizer.eos_token][0]


def load_causal_lm(
    path: Path, dtype: "torch.dtype", *, trust_remote_code: bool = False, quantization: Quantization | None = None
) -> "PreTrainedModel":
    """The frozen base in evaluation mode, on the CPU, without a key-value cache.

    Attention is torch's where that computes all that the family asks for.

    With `quantization` its decoder's linear layers are kept in 8 bits, or (on a GPU, by bitsandbytes) in 4.
    """
    from transformers import AutoModelForCausalLM

    from triptych.models.quantize import quantize_linears

    settings: dict[str, Any] = (
        {"quantization_config": _nf4(dtype), "device_map": "cuda"} if quantization == "nf4" else {}
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        **settings,
    )
    model.config.use_cache = False
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")  # transformers' sdpa leaves the cap out
    if quantization == "int8":
        quantize_linears(getattr(model, model.base_model_prefix))
    return model.eval().requires_grad_(False)


def _nf4(dtype: "torch.dtype") -> "BitsAndBytesConfig":
    """4 bits a weight, normal float, scales quantised too (Dettmers et al. 2023, arXiv 2305.14314)."""
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None or not torch.cuda.is_available():
        raise UserError("model.quantization: nf4 needs a GPU and the package bitsandbytes; allowed without them: int8")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def fingerprint(path: Path, chat_template: str | None = None) -> str:
    """Digests that identify a base: of its shapes and weight files, by name, and of its tokenizer and chat template.

    The same on every machine. `chat_template`: the recipe's, where it replaces the tokenizer's own. The files' digests
    are cached, and taken again when a file's size or time changes. `identity.difference` compares fingerprints.
    """
    files = weight_files(path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    words = tokenizer_files(path)
    digests = _digests(path, [*files, *words])
    identity = {
        "shape": {key: config[key] for key in _SHAPE_KEYS if key in config},
        "weights": {file.name: digests[file.name]["sha256"] for file in files},
    }
    hashes = {file.name: digests[file.name]["sha256"] for file in words}
    return joined(digest_of(identity), tokenizer_digest(path, hashes, chat_template))


def _digests(path: Path, files: list[Path]) -> dict[str, dict[str, Any]]:
    """File name -> size, mtime_ns, sha256."""
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    cache = cache_dir("fingerprints") / f"{place}.json"
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    digests = {}
    for file in files:
        stat = file.stat()
        entry = known.get(file.name, {})
        if entry.get("size") != stat.st_size or entry.get("mtime_ns") != stat.st_mtime_ns:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            entry = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest}
        digests[file.name] = entry
    if digests != known:
        write_bytes(str(cache), json.dumps(digests).encode())
    return digests
