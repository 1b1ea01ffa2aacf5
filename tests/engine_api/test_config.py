"""Flags and daemon.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine_api.config import DEFAULT_ENGINE, DEFAULT_HOST, ConfigError, check_host, load
from engine_api.daemon import insecure_hosts


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
        file={"data-root": "/srv/swarm", "engine": "tcp://engine:2375", "log-format": "json", "event-loop": "asyncio"},
        environment={"DOCKER_SERVICE_PREFER_OFFLINE_IMAGE": "1"},
    )
    assert config.hosts == ("unix:///run/a.sock", "tcp://127.0.0.1:2375")
    assert (config.data_root, config.engine, config.group) == (Path("/srv/swarm"), "tcp://engine:2375", "wheel")
    assert (config.log_level, config.log_format, config.event_loop) == ("debug", "json", "asyncio")
    assert (config.pidfile, config.prefer_offline) == (Path("/run/a.pid"), True)


def test_hosts_in_the_file_are_a_list_and_each_counts_once(tmp_path: Path) -> None:
    hosts = ["unix:///run/a.sock", "tcp://[::1]:2375", "unix:///run/a.sock"]
    assert _load(tmp_path, file={"hosts": hosts}).hosts == tuple(hosts[:2])


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
        ((), {"data-root": 5}, "data-root must be a text"),
        ((), {"tls": "yes"}, "tls must be true or false"),
        ((), {"engine": ["unix:///a"]}, "engine must be a text"),
        (("--data-root", "/a"), {"data-root": "/b"}, "data-root is set both by --data-root and in the configuration"),
        (("-H", "http://x:1"), {}, "bad host"),
        (("-H", "unix://relative"), {}, "bad host"),
        (("-H", "tcp://localhost:2375"), {}, "with an IP address"),
        (("-H", "tcp://127.0.0.1"), {}, "bad host"),
        (("-H", "tcp://127.0.0.1:65536"), {}, "bad host"),
        (("--engine", "ssh://me@host"), {}, "bad engine"),
        (("--engine", "unix://relative"), {}, "bad engine"),
        (("--engine", "tcp://host"), {}, "bad engine"),
        (("--listen-addr", "eth0"), {}, "bad host"),
        (("--listen-addr", "127.0.0.1:0"), {}, "port 0"),
        (("--log-level", "loud"), {}, "unknown log level 'loud': use debug, info, warn or error"),
        (("--log-format", "xml"), {}, "unknown log format 'xml': use text or json"),
        (("--event-loop", "trio"), {}, "unknown event loop 'trio': use uvloop or asyncio"),
        (("--tls",), {}, "--tls needs --tlscert and --tlskey"),
        (("--tlsverify", "--tlscert", "/c", "--tlskey", "/k"), {}, "--tlsverify needs --tlscacert"),
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


def test_verifying_clients_implies_tls(tmp_path: Path) -> None:
    config = _load(tmp_path, "--tlsverify", "--tlscacert", "/ca", "--tlscert", "/c", "--tlskey", "/k")
    assert config.tls


def test_hosts_are_taken_apart() -> None:
    assert check_host("unix:///run/a.sock") == ("unix", "/run/a.sock", 0)
    assert check_host("tcp://:2375") == ("tcp", "0.0.0.0", 2375)
    assert check_host("tcp://[::1]:2376/") == ("tcp", "::1", 2376)


def test_an_open_api_is_warned_about_in_stocks_words(tmp_path: Path) -> None:
    hosts = ("-H", "tcp://0.0.0.0:2375", "-H", "unix:///a")
    (text,) = insecure_hosts(_load(tmp_path, *hosts))
    assert text.splitlines()[0] == "WARNING: API is accessible on http://0.0.0.0:2375 without encryption."
    keys = ("--tlscert", "/c", "--tlskey", "/k")
    (text,) = insecure_hosts(_load(tmp_path, *hosts, "--tls", *keys))
    first = "WARNING: API is accessible on https://0.0.0.0:2375 without TLS client verification."
    assert text.splitlines()[0] == first
    assert insecure_hosts(_load(tmp_path, *hosts, "--tlsverify", "--tlscacert", "/ca", *keys)) == []
    assert insecure_hosts(_load(tmp_path)) == []
