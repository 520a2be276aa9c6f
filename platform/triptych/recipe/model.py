"""The base model and its precision."""

from typing import Literal

from pydantic import Field

from triptych.recipe.base import Closed

Dtype = Literal["float32", "bfloat16", "float16"]

Quantization = Literal["int8", "nf4"]


class Model(Closed):
    """The frozen base that every role of the run shares."""

    base: str = Field(min_length=1)
    """A built-in name (`smollm2-135m-instruct`), a Hugging Face id, or a local folder."""
    revision: str | None = None
    """Commit or tag of a Hugging Face id."""
    dtype: Dtype = "bfloat16"
    """Precision of the frozen weights and of the computation; everything trainable is float32."""
    quantization: Quantization | None = None
    """Precision in which the frozen linear layers are kept; `nf4` needs a GPU."""
    packing: bool = True
    """Rows of a micro-batch are laid end to end, without padding; attention never crosses from one to another."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository carries. Off unless you read that code."""
