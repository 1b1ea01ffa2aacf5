"""Flags and daemon.json become one frozen Config (names as dockerd's where dockerd has the option).

Precedence: command line, then the file, then the defaults; an option may not be set in both (as dockerd has it).
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_CONFIG_FILE = "/etc/sideswarm/daemon.json"
DEFAULT_HOST = "unix:///run/sideswarm/docker.sock"
DEFAULT_ENGINE = "unix:///run/docker.sock"


class ConfigError(Exception):
    """A flag or a setting is wrong; the text says which and why."""


@dataclass(frozen=True)
class Config:
    """Everything the daemon is told at its start.

    hosts: where the API listens. engine: DOCKER_HOST of the stock engine. default_listen_addr: used for 2377 where
    the user does not say otherwise. tls*: as dockerd's options, for tcp hosts. event_loop: uvloop, asyncio, or empty
    for uvloop where it is installed. allow_mixed_leadership: this manager may lead a group in which stock managers
    follow. prefer_offline: use images that are
    present without asking a registry (DOCKER_SERVICE_PREFER_OFFLINE_IMAGE=1, as in dockerd).
    """

    hosts: tuple[str, ...] = (DEFAULT_HOST,)
    engine: str = DEFAULT_ENGINE
    data_root: Path = Path("/var/lib/sideswarm")
    exec_root: Path = Path("/run/sideswarm")
    pidfile: Path | None = None
    group: str = "docker"
    default_listen_addr: str = ""
    default_advertise_addr: str = ""
    log_level: str = "info"
    log_format: str = "text"
    tls: bool = False
    tlsverify: bool = False
    tlscacert: Path | None = None
    tlscert: Path | None = None
    tlskey: Path | None = None
    event_loop: str = ""
    allow_mixed_leadership: bool = False
    prefer_offline: bool = False


# flag, name in daemon.json, field of Config
_OPTIONS: tuple[tuple[str, str, str], ...] = (
    ("--host", "hosts", "hosts"),
    ("--engine", "engine", "engine"),
    ("--data-root", "data-root", "data_root"),
    ("--exec-root", "exec-root", "exec_root"),
    ("--pidfile", "pidfile", "pidfile"),
    ("--group", "group", "group"),
    ("--listen-addr", "listen-addr", "default_listen_addr"),
    ("--swarm-default-advertise-addr", "swarm-default-advertise-addr", "default_advertise_addr"),
    ("--log-level", "log-level", "log_level"),
    ("--log-format", "log-format", "log_format"),
    ("--event-loop", "event-loop", "event_loop"),
    ("--allow-mixed-leadership", "allow-mixed-leadership", "allow_mixed_leadership"),
    ("--tls", "tls", "tls"),
    ("--tlsverify", "tlsverify", "tlsverify"),
    ("--tlscacert", "tlscacert", "tlscacert"),
    ("--tlscert", "tlscert", "tlscert"),
    ("--tlskey", "tlskey", "tlskey"),
)
_SWITCHES = ("tls", "tlsverify", "allow_mixed_leadership")
_CHOICES = {
    "log_level": ("debug", "info", "warn", "error"),
    "log_format": ("text", "json"),
    "event_loop": ("uvloop", "asyncio"),
}
_PORT_AT_END = re.compile(r"^(\[[^]]*\]|[^:]*):\d+$")
_PATHS = ("data_root", "exec_root", "pidfile", "tlscacert", "tlscert", "tlskey")
_HELP = {
    "--host": "where the Engine API listens: unix:///path or tcp://address:port; may be repeated",
    "--engine": f"the Docker Engine to stand beside (default {DEFAULT_ENGINE})",
    "--data-root": "where the swarm's state is kept (default /var/lib/sideswarm)",
    "--exec-root": "where run-time files and secrets in memory live (default /run/sideswarm)",
    "--pidfile": "write the process ID here",
    "--group": "group that owns the unix socket (default docker, where it exists)",
    "--listen-addr": "ADDRESS:PORT or PORT for swarm traffic where the command does not say (default 0.0.0.0:2377)",
    "--swarm-default-advertise-addr": "address or interface to advertise where the command does not say",
    "--log-level": "debug, info, warn or error (default info)",
    "--log-format": "text or json (default text)",
    "--event-loop": "uvloop or asyncio (default uvloop, where it is installed)",
    "--allow-mixed-leadership": "lead managers of stock engines, too, if elected (see docs/divergence.md)",
    "--tls": "serve tcp:// hosts with TLS",
    "--tlsverify": "serve tcp:// hosts with TLS and demand a client certificate of --tlscacert",
    "--tlscacert": "trust client certificates signed by this CA",
    "--tlscert": "the server's certificate",
    "--tlskey": "the server's key",
}


def parser() -> argparse.ArgumentParser:
    """The command line of sideswarmd."""
    out = argparse.ArgumentParser(
        prog="sideswarmd", description="Swarm mode beside a stock Docker Engine.", allow_abbrev=False
    )
    out.add_argument("--config-file", metavar="FILE", help=f"settings as JSON (default {DEFAULT_CONFIG_FILE})")
    short = {"--host": ("-H",), "--pidfile": ("-p",), "--group": ("-G",), "--log-level": ("-l",)}
    for flag, _, field in _OPTIONS:
        names = (*short.get(flag, ()), flag)
        if field in _SWITCHES:
            out.add_argument(*names, dest=field, action=argparse.BooleanOptionalAction, default=None, help=_HELP[flag])
        elif field == "hosts":
            out.add_argument(*names, dest=field, action="append", metavar="HOST", help=_HELP[flag])
        else:
            out.add_argument(*names, dest=field, metavar=field.upper().rpartition("_")[2], help=_HELP[flag])
    return out


def load(argv: list[str] | None = None, environment: dict[str, str] | None = None) -> Config:
    """Command line, file and environment to a Config. Raises ConfigError."""
    environment = dict(os.environ) if environment is None else environment
    args = vars(parser().parse_args(argv))
    settings = _read_file(args.pop("config_file"))
    values: dict[str, Any] = {}
    for flag, key, field in _OPTIONS:
        given = args.get(field)
        if given is not None and key in settings:
            raise ConfigError(f"{key} is set both by {flag} and in the configuration file; remove one of them")
        value = given if given is not None else settings.pop(key, None)
        if value is not None:
            values[field] = value
    if settings:
        raise ConfigError(f"the configuration file has unknown settings: {', '.join(sorted(settings))}")
    values["prefer_offline"] = environment.get("DOCKER_SERVICE_PREFER_OFFLINE_IMAGE") == "1"
    return _check(values)


def _read_file(name: str | None) -> dict[str, Any]:
    path = Path(name or DEFAULT_CONFIG_FILE)
    if name is None and not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold one JSON object")
    return settings


def _check(values: dict[str, Any]) -> Config:
    hosts = values.get("hosts")
    if hosts is not None:
        if not isinstance(hosts, list) or not hosts or not all(isinstance(host, str) for host in hosts):
            raise ConfigError("hosts must be a list of addresses")
        values["hosts"] = tuple(dict.fromkeys(hosts))
    for host in values.get("hosts", ()):
        check_host(host)
    for _, key, field in _OPTIONS:
        kind = bool if field in _SWITCHES else tuple if field == "hosts" else str
        if field in values and not isinstance(values[field], kind):
            raise ConfigError(f"{key} must be {'true or false' if kind is bool else 'a text'}")
    for field in _PATHS:
        if values.get(field):
            values[field] = Path(values[field]).absolute()
    for field, choices in _CHOICES.items():
        if field in values and values[field] not in choices:
            name = field.replace("_", " ")
            raise ConfigError(f"unknown {name} {values[field]!r}: use {', '.join(choices[:-1])} or {choices[-1]}")
    _check_engine(values.get("engine", DEFAULT_ENGINE))
    if values.get("default_listen_addr"):
        values["default_listen_addr"] = _listen_addr(values["default_listen_addr"])
    if values.get("tlsverify"):
        values["tls"] = True
        if not values.get("tlscacert"):
            raise ConfigError("--tlsverify needs --tlscacert")
    if values.get("tls") and not (values.get("tlscert") and values.get("tlskey")):
        raise ConfigError("--tls needs --tlscert and --tlskey")
    return Config(**values)


def _check_engine(engine: str) -> None:
    scheme, _, rest = engine.partition("://")
    host, _, port = rest.rstrip("/").rpartition(":")
    if scheme == "unix" and rest.startswith("/"):
        return
    if scheme == "tcp" and host and port.isdecimal() and 0 < int(port[:6]) < 65536:
        return
    raise ConfigError(f"bad engine {engine!r}: use unix:///path or tcp://HOST:PORT")


def _listen_addr(text: str) -> str:
    """ADDRESS:PORT of what may be an address, a port or both."""
    if text.isdecimal():
        text = f"0.0.0.0:{text}"
    _, _, port = check_host(f"tcp://{text if _PORT_AT_END.search(text) else f'{text}:2377'}")
    if not port:
        raise ConfigError(f"bad listen address {text!r}: port 0")
    return text if _PORT_AT_END.search(text) else f"{text}:2377"


def check_host(host: str) -> tuple[str, str, int]:
    """("unix", path, 0) or ("tcp", address, port) of a -H value. Raises ConfigError."""
    scheme, separator, rest = host.partition("://")
    if scheme == "unix" and separator and rest.startswith("/"):
        return "unix", rest, 0
    if scheme == "tcp" and separator:
        address, _, port = rest.rstrip("/").rpartition(":")
        try:
            number = int(port)
            ipaddress.ip_address(address.strip("[]") or "0.0.0.0")
        except ValueError:
            raise ConfigError(f"bad host {host!r}: use tcp://ADDRESS:PORT with an IP address") from None
        if 0 <= number < 65536:
            return "tcp", address.strip("[]") or "0.0.0.0", number
    raise ConfigError(f"bad host {host!r}: use unix:///path or tcp://ADDRESS:PORT")
