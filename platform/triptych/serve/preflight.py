"""Checks of a serve config before anything starts."""

import errno
import logging
import socket
from pathlib import Path

from triptych.errors import UserError
from triptych.models.base import BUILT_IN, fingerprint, resolve_base
from triptych.models.sizes import longrope_switch, read_config
from triptych.plan import Machine, Request
from triptych.plan.placement import pack
from triptych.recipe.serve import ServeConfig
from triptych.registry import Registry
from triptych.registry.facts import UnreadableError
from triptych.serve.capabilities import MisfitError, engine_for, engines_of
from triptych.storage import absolute

log = logging.getLogger(__name__)


def check(config: ServeConfig) -> tuple[ServeConfig, str]:
    """Check a config; returns it with absolute paths, as replicas run in other folders, and the base's fingerprint.

    An adapter whose files cannot be read is left out, with a warning: it may not keep the others from being served.

    Raises:
        UserError: the base or the registry is not there, or an adapter that the config names does not fit.
    """
    base = fingerprint(resolve_base(config.model), config.model.chat_template)
    registry = Registry(config.registry, config.artifacts, create=False)
    for name in () if config.adapters == "all" else config.adapters:
        try:
            engine_for(registry.get(name), registry, base, engines_of(config))
        except MisfitError as error:
            raise UserError(f"adapters: {name} cannot be served: {error}") from error
        except UnreadableError as error:
            log.warning("adapters: %s is left out: %s", name, error)
    return _absolute(_as_trained(config), registry), base


def check_port(host: str, port: int) -> None:
    """Raise UserError if nothing can listen on the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise UserError(f"port: {host}:{port} {why}; choose another with --port") from error


def check_room(config: ServeConfig, machine: Machine) -> None:
    """Raise UserError unless the machine, with nothing else on it, has room for all replicas."""
    engine = config.engine
    replicas = Request("serve", "replica", config.replicas, engine.cpus, engine.gpus, "replicas")
    if pack([replicas], machine) is None:
        raise UserError(
            f"replicas: {config.replicas} of {engine.cpus:g} CPUs and {engine.gpus} GPUs each do not fit {machine}; "
            "lower replicas, engine.cpus or engine.gpus"
        )


def _as_trained(config: ServeConfig) -> ServeConfig:
    """The config with no more tokens than training may have, where the base takes other factors of longrope beyond.

    vLLM takes them for short requests too, as soon as any may be longer; asked for more, it gets more, and a warning.
    """
    switch, asked = longrope_switch(read_config(config.model)), config.engine.max_model_len
    if switch is None:
        return config
    if asked is not None and asked > switch:
        log.warning(
            "engine.max_model_len: %d, and beyond %d tokens this base takes longrope's long factors, for short "
            "requests too: adapters, which are trained on up to %d tokens, are not served as they were trained",
            asked,
            switch,
            switch,
        )
    engine = config.engine.model_copy(update={"max_model_len": asked or switch})
    return config.model_copy(update={"engine": engine})


def _absolute(config: ServeConfig, registry: Registry) -> ServeConfig:
    model = config.model
    if model.base not in BUILT_IN and Path(model.base).expanduser().is_dir():
        model = model.model_copy(update={"base": str(Path(model.base).expanduser().resolve())})
    artifacts = None if config.artifacts is None else absolute(config.artifacts)
    found = {"model": model, "name": config.model_id, "registry": registry.url, "artifacts": artifacts}
    return config.model_copy(update=found)
