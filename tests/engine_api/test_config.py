"""Flags and daemon.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine_api.config import DEFAULT_ENGINE, DEFAULT_HOST, Config, ConfigError, check_host, load
from engine_api.daemon import insecure_warnings
from swarm import defaults


def _load(tmp_path: Path, *flags: str, file: Any = None, environment: dict[str, str] | None = None) -> Any:
    path = tmp_path / "daemon.json"
    path.write_text(file if isinstance(file, str) else json.dumps(file or {}))
    return load(["--config-file", str(path), *flags], environment or {})


def test_without_flags_there_are_defaults(tmp_path: Path) -> None:
    config = _load(tmp_path)
    assert (config.hosts, config.engine) == ((DEFAULT_HOST,), DEFAULT_ENGINE)
    assert (config.data_root, config.exec_root) == (Path("/var/lib/sideswarm"), Path("/run/sideswarm"))
    assert (config.tls, config.prefer_offline, config.event_loop) == (False, False, "")


def test_flags_and_file_together_make_the_config(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        *("-H", "unix:///run/a.sock", "-H", "tcp://127.0.0.1:2375", "-l", "debug", "-G", "wheel", "-p", "/run/a.pid"),
        file={
            "tls": False,
            "data-root": "/srv/swarm",
            "engine": "tcp://engine:2375",
            "log-format": "json",
            "event-loop": "asyncio",
        },
        environment={"DOCKER_SERVICE_PREFER_OFFLINE_IMAGE": "1"},
    )
    assert config.hosts == ("unix:///run/a.sock", "tcp://127.0.0.1:2375")
    assert (config.data_root, config.engine, config.group) == (Path("/srv/swarm"), "tcp://engine:2375", "wheel")
    assert (config.log_level, config.log_format, config.event_loop) == ("debug", "json", "asyncio")
    assert (config.pidfile, config.prefer_offline) == (Path("/run/a.pid"), True)


def test_hosts_in_the_file_are_a_list_without_duplicates(tmp_path: Path) -> None:
    hosts = ["unix:///run/a.sock", "tcp://[::1]:2375", "unix:///run/a.sock"]
    assert _load(tmp_path, file={"hosts": hosts, "tls": False}).hosts == tuple(hosts[:2])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("2378", "0.0.0.0:2378"),
        ("127.0.0.1", "127.0.0.1:2377"),
        ("127.0.0.1:3000", "127.0.0.1:3000"),
        ("[::1]:3000", "[::1]:3000"),
        ("[::1]", "[::1]:2377"),
    ],
)
def test_a_listen_address_may_be_an_address_a_port_or_both(tmp_path: Path, text: str, address: str) -> None:
    assert _load(tmp_path, "--listen-addr", text).default_listen_addr == address


@pytest.mark.parametrize(
    ("flags", "file", "text"),
    [
        ((), "[1]", "must hold one JSON object"),
        ((), "{", "is not JSON"),
        ((), {"host": ["unix:///a"]}, "unknown settings: host"),
        ((), {"hosts": "unix:///a"}, "hosts must be a list of addresses"),
        ((), {"hosts": []}, "hosts must be a list of addresses"),
        ((), {"data-root": 5}, "data-root must be a string"),
        ((), {"tls": "yes"}, "tls must be true or false"),
        ((), {"engine": ["unix:///a"]}, "engine must be a string"),
        (("--data-root", "/a"), {"data-root": "/b"}, "data-root is set both by --data-root and in the configuration"),
        (("-H", "http://x:1"), {}, "bad host"),
        (("-H", "unix://relative"), {}, "bad host"),
        (("-H", "tcp://example:2375"), {}, "with an IP address"),
        (("-H", "tcp://127.0.0.1:"), {}, "bad host"),
        (("-H", "tcp://127.0.0.1:65536"), {}, "bad host"),
        (("--engine", "ssh://me@host"), {}, "bad engine"),
        (("--engine", "unix://relative"), {}, "bad engine"),
        (("--engine", "tcp://host"), {}, "bad engine"),
        (("--listen-addr", "eth0"), {}, "bad host"),
        (("--listen-addr", "127.0.0.1:0"), {}, "port 0"),
        (("--log-level", "loud"), {}, "unknown log level 'loud': use debug, info, warn or error"),
        (("--log-format", "xml"), {}, "unknown log format 'xml': use text or json"),
        (("--event-loop", "trio"), {}, "unknown event loop 'trio': use uvloop or asyncio"),
        (("-H", "tcp://0.0.0.0:2375"), {}, "everybody who reaches it root on this host: use --tlsverify"),
        (("-H", "tcp://127.0.0.1:2375"), {}, "--tls=false if that is intended"),
        (("--tls",), {"tls": False}, "tls is set both by --tls and in the configuration"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_reason(
    tmp_path: Path, flags: tuple[str, ...], file: Any, text: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        _load(tmp_path, *flags, file=file)
    assert text in str(refused.value)


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(["--config-file", str(tmp_path / "none.json")], {})


CERTIFICATES = ("/me/.docker/ca.pem", "/me/.docker/cert.pem", "/me/.docker/key.pem")


def _doors(config: Config) -> tuple[bool, bool, tuple[str, ...]]:
    return config.tls, config.tlsverify, config.hosts


@pytest.mark.parametrize(
    ("flags", "file", "environment", "doors"),
    [
        (("-H", "tcp://"), {"tlsverify": True}, {}, (True, True, ("tcp://127.0.0.1:2376",))),
        (("-H", "tcp://0.0.0.0", "--tls"), {}, {}, (True, True, ("tcp://0.0.0.0:2376",))),
        (("-H", ":4243", "--tls", "--tlsverify=false"), {}, {}, (True, False, ("tcp://127.0.0.1:4243",))),
        (("-H", "10.0.0.1", "--tlsverify=0"), {}, {}, (True, False, ("tcp://10.0.0.1:2376",))),
        (("-H", "tcp://0.0.0.0", "--tls=false"), {}, {}, (False, False, ("tcp://0.0.0.0:2375",))),
        (("-H", "tcp://0.0.0.0", "--tls=f", "--tlsverify=T"), {}, {}, (True, True, ("tcp://0.0.0.0:2376",))),
        (
            (
                "-H",
                "tcp://[::]",
            ),
            {"tls": False, "tlsverify": True},
            {},
            (True, True, ("tcp://[::]:2376",)),
        ),
        (
            (
                "-H",
                "tcp://localhost",
            ),
            {},
            {"DOCKER_TLS_VERIFY": "1"},
            (True, True, ("tcp://127.0.0.1:2376",)),
        ),
        (
            (
                "-H",
                "tcp://",
            ),
            {"tls": False},
            {"DOCKER_TLS_VERIFY": "1"},
            (False, False, ("tcp://127.0.0.1:2375",)),
        ),
        ((), {}, {"DOCKER_TLS_VERIFY": "1"}, (True, True, (DEFAULT_HOST,))),
        (("--tlsverify",), {}, {}, (True, True, ("tcp://127.0.0.1:2376",))),
        (("--tls=false",), {}, {}, (False, False, (DEFAULT_HOST,))),
    ],
)
def test_tls_ports_and_verification_follow_dockerds_rules(
    tmp_path: Path,
    flags: tuple[str, ...],
    file: dict[str, Any],
    environment: dict[str, str],
    doors: tuple[bool, bool, tuple[str, ...]],
) -> None:
    assert _doors(_load(tmp_path, *flags, file=file, environment=environment)) == doors


def test_files_that_are_not_named_are_where_the_cli_has_its_own(tmp_path: Path) -> None:
    config = _load(tmp_path, "--tls", environment={"HOME": "/me"})
    assert tuple(str(path) for path in (config.tlscacert, config.tlscert, config.tlskey)) == CERTIFICATES
    flags = ("--tlsverify", "--tlscert", "/etc/docker/server.pem")
    config = _load(tmp_path, *flags, environment={"HOME": "/me", "DOCKER_CERT_PATH": "/certs"})
    assert (str(config.tlscacert), str(config.tlscert)) == ("/certs/ca.pem", "/etc/docker/server.pem")
    assert _load(tmp_path).tlskey is None


def test_a_switch_that_is_neither_true_nor_false_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _load(tmp_path, "--tlsverify=maybe")
    assert "'maybe' is neither true nor false" in capsys.readouterr().err


def test_docker_machines_unit_is_understood(tmp_path: Path) -> None:
    names = ("--tlscacert", "/etc/docker/ca.pem", "--tlscert", "/etc/docker/server.pem")
    key = ("--tlskey", "/etc/docker/server-key.pem")
    config = _load(tmp_path, "-H", "tcp://0.0.0.0:2376", "-H", "unix:///run/a.sock", "--tlsverify", *names, *key)
    assert _doors(config) == (True, True, ("tcp://0.0.0.0:2376", "unix:///run/a.sock"))
    assert (str(config.tlscacert), str(config.tlskey)) == ("/etc/docker/ca.pem", "/etc/docker/server-key.pem")
    assert config.tcp_hosts == ("tcp://0.0.0.0:2376",)


def test_hosts_are_taken_apart() -> None:
    assert check_host("unix:///run/a.sock") == ("unix", "/run/a.sock", 0)
    assert check_host("tcp://:2375") == ("tcp", "127.0.0.1", 2375)
    assert check_host("tcp://[::1]:2376/") == ("tcp", "::1", 2376)
    assert check_host("tcp://[fe80::1]", 2376) == ("tcp", "fe80::1", 2376)


def test_an_open_api_is_warned_about_in_stocks_words(tmp_path: Path) -> None:
    hosts = ("-H", "tcp://0.0.0.0:2375", "-H", "unix:///a")
    (text,) = insecure_warnings(_load(tmp_path, *hosts, "--tls=false"))
    assert text.splitlines()[0] == "WARNING: API is accessible on http://0.0.0.0:2375 without encryption."
    (text,) = insecure_warnings(_load(tmp_path, *hosts, "--tlsverify=false"))
    first = "WARNING: API is accessible on https://0.0.0.0:2375 without TLS client verification."
    assert text.splitlines()[0] == first
    assert insecure_warnings(_load(tmp_path, *hosts, "--tlsverify")) == []
    assert insecure_warnings(_load(tmp_path)) == []


def test_the_limit_of_replicas_is_a_positive_number(tmp_path: Path) -> None:
    assert _load(tmp_path).max_replicas == defaults.SERVICE_REPLICAS_MAX
    assert _load(tmp_path, "--max-replicas", "7").max_replicas == 7
    assert _load(tmp_path, file={"max-replicas": 2_000_000}).max_replicas == 2_000_000
    for wrong in (0, -1, "7", True, 1.5):
        with pytest.raises(ConfigError, match="max-replicas must be a number from 1"):
            _load(tmp_path, file={"max-replicas": wrong})
    with pytest.raises(ConfigError, match="max-replicas must be a number from 1"):
        _load(tmp_path, "--max-replicas", "0")
