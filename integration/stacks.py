"""Stack files for the tests, and a web server that says who answers whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from integration.lab import Host
from integration.waiting import until

# The script of the web server. The server ends at once at a stop signal, as the shell waits for it.
_SERVE = """
mkdir -p /www/cgi-bin
cat > /www/cgi-bin/who <<'END'
#!/bin/sh
client=$(echo "$REMOTE_ADDR" | tr -d '[]' | sed s/^::ffff://)
printf 'Content-Type: text/plain\\r\\n\\r\\n%s saw %s %s\\n' "$(hostname)" "$client" "$WORD"
END
chmod 755 /www/cgi-bin/who
httpd -f -p {port} -h /www &
trap 'kill $!; exit 0' TERM
wait
"""


def web_command(port: int = 80) -> list[str]:
    """A web server in busybox; /cgi-bin/who answers "<host name> saw <client's address> <$WORD>"."""
    return ["sh", "-c", _SERVE.format(port=port)]


def web_health(port: int = 80) -> list[str]:
    """The health check of such a server."""
    return ["CMD-SHELL", f"wget -q -O /dev/null http://127.0.0.1:{port}/cgi-bin/who"]


def service(networks: list[str], replicas: int = 1, word: str = "", **more: Any) -> dict[str, Any]:
    """One service of a compose file: a healthy web server on these networks. A dollar sign is doubled for compose."""
    deploy = {"replicas": replicas, **more.pop("deploy", {})}
    return {
        "image": "busybox:latest",
        "command": [part.replace("$", "$$") for part in web_command()],
        "environment": {"WORD": word},
        "healthcheck": {"test": web_health(), "interval": "500ms", "retries": 5, "start_period": "5s"},
        "networks": networks,
        "deploy": deploy,
        **more,
    }


def deploy(host: Host, name: str, services: dict[str, Any], networks: dict[str, Any]) -> None:
    """docker stack deploy, from a file that stays in the host's directory."""
    path = Path(host.directory) / f"{name}.yml"
    path.write_text(json.dumps({"version": "3.8", "services": services, "networks": networks}))  # JSON is YAML
    host.docker("stack", "deploy", "--resolve-image", "never", "-c", str(path), name)


def running(host: Host, service_name: str, count: int, timeout_s: float = 60.0) -> None:
    """Wait until so many tasks of a service run, and no others are under way."""
    filters = ("--filter", "desired-state=running", "--format", "{{.CurrentState}}")

    def settled() -> bool:
        states = host.docker("service", "ps", *filters, service_name).splitlines()
        return len(states) == count and all(state.startswith("Running") for state in states)

    try:
        until(settled, timeout_s=timeout_s, what=f"{count} running tasks of {service_name}")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{host.docker('service', 'ps', '--no-trunc', service_name)}") from None


def containers(hosts: list[Host], service_name: str) -> dict[str, Host]:
    """The running containers of a service, by ID."""
    listed = ("ps", "-q", "--no-trunc", "--filter", f"label=com.docker.swarm.service.name={service_name}")
    return {container: host for host in hosts for container in host.docker(*listed, engine=True).split()}


def inside(host: Host, container: str) -> list[str]:
    """The words of a command that enters a container's network, but nothing else of it."""
    pid = host.docker("inspect", "--format", "{{.State.Pid}}", container, engine=True).strip()
    return ["nsenter", "-t", pid, "-n"]
