"""The base model and its precision."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from triptych.recipe.base import Closed

Dtype = Literal["float32", "bfloat16", "float16"]

Quantization = Literal["int8", "nf4"]


class Model(Closed):
    """The frozen base that every role of the run shares."""

    base: str = Field(min_length=1)
    """A built-in name (`smollm2-135m-instruct`), a Hugging Face id, or a local folder."""
    revision: str | None = None
    """Commit or tag of a Hugging Face id."""
    chat_template: str | None = Field(None, min_length=1)
    """A Jinja chat template, as text or as the name of a file, which is read at once; None: the tokenizer's own."""
    dtype: Dtype = "bfloat16"
    """Precision of the frozen weights and of the computation; everything trainable is float32."""
    quantization: Quantization | None = None
    """Precision in which the frozen linear layers are kept; `nf4` needs a GPU."""
    packing: bool = True
    """Rows of a micro-batch are laid end to end, without padding; attention never crosses from one to another.

    A model that mixes tokens by a convolution, a recurrence or a state space is padded all the same."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository carries. Off unless you read that code."""

    @field_validator("chat_template")
    @classmethod
    def _text_of_template(cls, given: str | None) -> str | None:
        """The template's text: workers and other nodes do not have the file."""
        if given is None or "{{" in given or "{%" in given:
            return given
        try:
            text = Path(given).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(f"{given!r} is neither a file that can be read nor a Jinja template: {error}") from error
        if "{{" not in text and "{%" not in text:
            raise ValueError(f"{given}: holds no Jinja template ({{{{ ... }}}} or {{% ... %}})")
        return text
