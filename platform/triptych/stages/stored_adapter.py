"""A registered adapter as workers get it: its place, of which each process reads the files itself."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from triptych import storage
from triptych.errors import UserError
from triptych.models.adapter import Adapter, load_adapter
from triptych.registry import AdapterVersion


@dataclass(frozen=True)
class StoredAdapter:
    """A registered adapter. Picklable without its tensors, of which Ray would keep several copies in every worker."""

    version: AdapterVersion
    kind: str
    """What it is to be: `policy`, `reward_model`, `classifier`."""
    to_go_on: bool = False
    """Whether it is read as training left it; see `load_adapter`."""

    @classmethod
    def read(cls, version: AdapterVersion, kind: str, *, to_go_on: bool = False) -> "StoredAdapter":
        """It with its files read at once. UserError: as of `adapter`."""
        stored = cls(version, kind, to_go_on)
        _ = stored.adapter
        return stored

    @cached_property
    def adapter(self) -> Adapter:
        """Its tensors and facts. UserError: its files are none of such an adapter; the version is named."""
        try:
            return load_adapter(storage.local_copy(self.version.url), self.kind, to_go_on=self.to_go_on)
        except UserError as error:
            raise UserError(f"{self.version.ref}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "adapter"}
