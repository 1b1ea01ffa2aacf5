"""The lab itself, through pytest-docker."""

from __future__ import annotations

from integration.lab import Host, Lab
from integration.waiting import until


def _ping(host: Host, address: str) -> bool:
    done = host.inside("busybox", "ping", "-c", "1", "-W", "1", address)
    return done.returncode == 0


def test_hosts_reach_each_other_until_they_are_cut_and_again_after_heal(lab: Lab) -> None:
    first, second, third = lab.hosts
    assert _ping(first, second.ip)
    lab.cut(first, second)
    assert not _ping(first, second.ip)
    assert _ping(first, third.ip)
    lab.heal()
    assert _ping(first, second.ip)


def test_a_killed_daemon_is_gone_and_comes_back_with_start(lab: Lab) -> None:
    host = lab.hosts[0]
    lab.kill(host)
    assert host.docker_run("version").returncode != 0
    lab.start(host)
    assert "sideswarm" in host.docker("version")


def test_a_killed_engine_shows_as_a_clear_error_and_comes_back(lab: Lab) -> None:
    host = lab.hosts[0]
    lab.kill(host, "engine")
    failed = host.docker_run("ps")
    assert failed.returncode != 0
    assert "Cannot connect to the Docker Engine" in failed.stderr
    lab.start(host, "engine")
    until(lambda: host.docker_run("ps").returncode, lambda code: code == 0, what="the engine behind the daemon")
