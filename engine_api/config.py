"""Reads flags and daemon.json into one frozen Config; options that dockerd has keep dockerd's names.

Precedence: command line, then the file, then the environment, then the defaults; as in dockerd, an option may not be
set in both of the first two. TLS follows dockerd's rules as well: --tlsverify, whatever its value, means TLS, and
--tls means verification too unless --tlsverify=false says otherwise. A tcp:// host that does not verify its clients is
refused where dockerd only warns, unless --tls=false or --tlsverify=false asks for it.

(moby: daemon/command/options.go, daemon/command/daemon.go, daemon/pkg/opts/hosts.go)
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarm import defaults
from swarm.address import PORT_MAX, join_host_port, parse_host_port

DEFAULT_CONFIG_FILE = "/etc/sideswarm/daemon.json"
DEFAULT_HOST = "unix:///run/sideswarm/docker.sock"
DEFAULT_ENGINE = "unix:///run/docker.sock"
HTTP_PORT = 2375
HTTPS_PORT = 2376


class ConfigError(Exception):
    """A flag or a setting is wrong; the text says which and why."""


@dataclass(frozen=True)
class Config:
    """All settings of the daemon.

    hosts: where the API listens, complete with ports. engine: DOCKER_HOST of the stock engine. default_listen_addr:
    used for 2377 where the user does not say otherwise. tls: tcp hosts speak TLS; tlsverify: and verify their clients;
    the files as dockerd's options. event_loop: uvloop, asyncio, or empty for uvloop where it is installed.
    allow_mixed_leadership: this manager may lead a group in which stock managers follow. prefer_offline: use images
    that are present without asking a registry (DOCKER_SERVICE_PREFER_OFFLINE_IMAGE=1, as in dockerd). metrics_addr:
    "ADDRESS:PORT" where /metrics is served, to everybody and without TLS; empty: it is not served. max_replicas: how
    many tasks this manager, while it leads, lets one service ask for. network_driver: under which name the engine finds
    our driver of networks, as a socket in plugin_directory; engines that share their file system need a name each.
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
    metrics_addr: str = ""
    max_replicas: int = defaults.SERVICE_REPLICAS_MAX
    network_driver: str = "sideswarm"
    plugin_directory: Path = Path("/run/docker/plugins")

    @property
    def tcp_hosts(self) -> tuple[str, ...]:
        """The hosts that listen on the network."""
        return tuple(host for host in self.hosts if host.startswith("tcp://"))


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
    ("--metrics-addr", "metrics-addr", "metrics_addr"),
    ("--allow-mixed-leadership", "allow-mixed-leadership", "allow_mixed_leadership"),
    ("--max-replicas", "max-replicas", "max_replicas"),
    ("--network-driver", "network-driver", "network_driver"),
    ("--plugin-directory", "plugin-directory", "plugin_directory"),
    ("--tls", "tls", "tls"),
    ("--tlsverify", "tlsverify", "tlsverify"),
    ("--tlscacert", "tlscacert", "tlscacert"),
    ("--tlscert", "tlscert", "tlscert"),
    ("--tlskey", "tlskey", "tlskey"),
)
_SWITCHES = ("tls", "tlsverify", "allow_mixed_leadership")
_NUMBERS = ("max_replicas",)
_CHOICES = {
    "log_level": ("debug", "info", "warn", "error"),
    "log_format": ("text", "json"),
    "event_loop": ("uvloop", "asyncio"),
}
_KINDS = {bool: "true or false", int: "a number from 1", str: "a string", tuple: "a list"}
_PORT_AT_END = re.compile(r"^(\[[^]]*\]|[^:]*):\d+$")
_DRIVER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_PATHS = ("data_root", "exec_root", "pidfile", "plugin_directory", "tlscacert", "tlscert", "tlskey")
_HELP = {
    "--host": "where the Engine API listens: unix:///path or tcp://address[:port]; may be repeated (ports: 2376 with "
    "TLS, 2375 without)",
    "--engine": f"the Docker Engine to use (default {DEFAULT_ENGINE})",
    "--data-root": "where the swarm's state is kept (default /var/lib/sideswarm)",
    "--exec-root": "where run-time files and the secrets of running tasks are kept (default /run/sideswarm)",
    "--pidfile": "write the process ID here",
    "--group": "group that owns the unix socket (default docker, if it exists)",
    "--listen-addr": "ADDRESS:PORT or PORT for swarm traffic, unless the command says otherwise (default 0.0.0.0:2377)",
    "--swarm-default-advertise-addr": "address or interface to advertise, unless the command says otherwise",
    "--log-level": "debug, info, warn or error (default info)",
    "--log-format": "text or json (default text)",
    "--event-loop": "uvloop or asyncio (default uvloop, if it is installed)",
    "--metrics-addr": "ADDRESS:PORT to serve Prometheus metrics on, without TLS (default: not served)",
    "--allow-mixed-leadership": "lead a group in which stock managers follow (see docs/divergence.md)",
    "--max-replicas": "how many tasks one service may have, or one job complete, while this manager leads "
    f"(default {defaults.SERVICE_REPLICAS_MAX})",
    "--network-driver": "the name of our driver of networks in the engine (default sideswarm)",
    "--plugin-directory": "where the engine looks for sockets of plugins (default /run/docker/plugins)",
    "--tls": "serve tcp:// hosts with TLS (implied by --tlsverify); --tls=false: no TLS, and no check of clients",
    "--tlsverify": "require client certificates signed by --tlscacert (default with TLS); --tlsverify=false: no check",
    "--tlscacert": "trust client certificates signed by this CA (default ~/.docker/ca.pem or $DOCKER_CERT_PATH/ca.pem)",
    "--tlscert": "the server's certificate (default cert.pem in the same directory)",
    "--tlskey": "the server's key (default key.pem in the same directory)",
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
            out.add_argument(*names, dest=field, nargs="?", const=True, type=_switch, metavar="BOOL", help=_HELP[flag])
        elif field in _NUMBERS:
            out.add_argument(*names, dest=field, type=int, metavar="NUMBER", help=_HELP[flag])
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
    return _check(values, environment)


def _switch(text: str) -> bool:
    """The boolean that --flag=text means, by Go's rules."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


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


def _check(values: dict[str, Any], environment: dict[str, str]) -> Config:
    hosts = values.get("hosts")
    if hosts is not None:
        if not isinstance(hosts, list) or not hosts or not all(isinstance(host, str) for host in hosts):
            raise ConfigError("hosts must be a list of addresses")
        values["hosts"] = tuple(hosts)
    for _, key, field in _OPTIONS:
        kind = bool if field in _SWITCHES else tuple if field == "hosts" else int if field in _NUMBERS else str
        if field in values and not isinstance(values[field], kind):
            raise ConfigError(f"{key} must be {_KINDS[kind]}")
        if kind is int and field in values and (isinstance(values[field], bool) or values[field] < 1):
            raise ConfigError(f"{key} must be {_KINDS[kind]}")
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
    if not _DRIVER_NAME.fullmatch(values.get("network_driver", "sideswarm")):
        raise ConfigError(
            f"network-driver must be a name of letters, digits, -, _ and ., not {values['network_driver']!r}"
        )
    if values.get("metrics_addr"):
        host_and_port(values["metrics_addr"])
    _complete_tls(values, environment)
    return Config(**values)


def host_and_port(text: str) -> tuple[str, int]:
    """ "ADDRESS:PORT" (no address: this host alone) in its two parts. Raises ConfigError."""
    try:
        host, port = parse_host_port(text)
    except ValueError:
        raise ConfigError(f"--metrics-addr must be ADDRESS:PORT, not {text!r}") from None
    return host or "127.0.0.1", port


def _complete_tls(values: dict[str, Any], environment: dict[str, str]) -> None:
    """Complete tls, tlsverify, their files and the hosts as dockerd does, and refuse accidentally open tcp hosts."""
    tls, verify = values.get("tls"), values.get("tlsverify")
    open_on_purpose = tls is False or verify is False
    if tls is None and verify is None and environment.get("DOCKER_TLS_VERIFY"):
        verify = True
    elif "hosts" not in values and (tls or verify is not None):
        values["hosts"] = ("tcp://",)  # dockerd's default with these options
    values["tls"] = bool(tls) or verify is not None
    values["tlsverify"] = values["tls"] if verify is None else verify
    if "hosts" in values:
        values["hosts"] = tuple(dict.fromkeys(_complete_host(host, values["tls"]) for host in values["hosts"]))
    directory = Path(environment.get("DOCKER_CERT_PATH") or f"{environment.get('HOME') or '/root'}/.docker")
    for field, name in (("tlscacert", "ca.pem"), ("tlscert", "cert.pem"), ("tlskey", "key.pem")):
        if values["tls"] and not values.get(field):
            values[field] = (directory / name).absolute()
    for host in values.get("hosts", ()):
        if host.startswith("tcp://") and not values["tlsverify"] and not open_on_purpose:
            raise ConfigError(
                f"{host} would make everybody who reaches it root on this host: use --tlsverify with certificates, or "
                "--tls=false if that is intended"
            )


def _complete_host(host: str, tls: bool) -> str:
    kind, address, port = check_host(host, HTTPS_PORT if tls else HTTP_PORT)
    if kind == "unix":
        return f"unix://{address}"
    return f"tcp://{join_host_port(address, port)}"


def insecure_hosts(config: Config) -> list[tuple[str, str, str]]:
    """Hosts whose API anyone can use: scheme, address with port, and which protection is missing."""
    if config.tlsverify:
        return []
    scheme, lack = ("https", "TLS client verification") if config.tls else ("http", "encryption")
    return [(scheme, host.removeprefix("tcp://"), lack) for host in config.tcp_hosts]


def _check_engine(engine: str) -> None:
    scheme, _, rest = engine.partition("://")
    if scheme == "unix" and rest.startswith("/"):
        return
    if scheme == "tcp":
        with suppress(ValueError):
            host, port = parse_host_port(rest.rstrip("/"))
            if host and port:
                return
    raise ConfigError(f"bad engine {engine!r}: use unix:///path or tcp://HOST:PORT")


def _listen_addr(text: str) -> str:
    """ADDRESS:PORT from an address, a port or both."""
    if text.isdecimal():
        text = f"0.0.0.0:{text}"
    _, _, port = check_host(f"tcp://{text if _PORT_AT_END.search(text) else f'{text}:2377'}")
    if not port:
        raise ConfigError(f"bad listen address {text!r}: port 0")
    return text if _PORT_AT_END.search(text) else f"{text}:2377"


def check_host(host: str, default_port: int = HTTP_PORT) -> tuple[str, str, int]:
    """("unix", path, 0) or ("tcp", address, port) of a -H value. Raises ConfigError.

    As in dockerd, no scheme means tcp, no port the default, and no address this host alone.
    """
    scheme, separator, rest = host.partition("://")
    if not separator:
        scheme, rest = "tcp", host
    if scheme == "unix" and rest.startswith("/"):
        return "unix", rest, 0
    if scheme == "tcp":
        rest = rest.removesuffix("/")
        address, port = rest.rpartition(":")[::2] if _PORT_AT_END.search(rest) else (rest, str(default_port))
        address = address.removeprefix("[").removesuffix("]")
        try:
            found = ipaddress.ip_address("127.0.0.1" if address in ("", "localhost") else address)
        except ValueError:
            raise ConfigError(f"bad host {host!r}: use tcp://ADDRESS:PORT with an IP address") from None
        if int(port) <= PORT_MAX:
            return "tcp", str(found), int(port)
    raise ConfigError(f"bad host {host!r}: use unix:///path or tcp://ADDRESS:PORT")
