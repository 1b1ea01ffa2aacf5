"""Templates in secrets and configs, as a node fills them in."""

from __future__ import annotations

import pytest

from engine_api.executor import templates
from engine_api.executor.errors import TaskError
from engine_api.executor.templates import NOT_SHOWN
from swarm import api

NODE = api.NodeDescription(hostname="host1")
GOLANG = api.Driver(name="golang")


def payloads(text: bytes, driver: api.Driver | None = GOLANG) -> templates.Payloads:
    task = api.Task(id="t1", slot=3)
    task.service_annotations.name = "web"
    task.spec.container.env.append("LEVEL=high")
    for name in ("plain", "gone"):
        task.spec.container.secrets.add(secret_id=f"id-{name}").file.name = name
        task.spec.container.configs.add(config_id=f"id-{name}").file.name = name
    spec = api.ConfigSpec(data=text, templating=driver)
    configs = {"c": api.Config(spec=spec), "id-plain": api.Config(spec=api.ConfigSpec(data=b"{{raw}}"))}
    secrets = {
        "c": api.Secret(spec=api.SecretSpec(data=text, templating=driver)),
        "id-plain": api.Secret(spec=api.SecretSpec(data=b"hunter2\xff")),
    }
    return templates.Payloads(task, NODE, secrets, configs)


def test_payloads_without_a_driver_are_kept_as_they_are() -> None:
    assert payloads(b"{{.Task.ID}}\xff", None).config("c") == b"{{.Task.ID}}\xff"
    assert payloads(b"{{.Task.ID}}\xff", None).secret("c") == b"{{.Task.ID}}\xff"


def test_templates_see_the_task_its_node_and_its_other_payloads() -> None:
    text = b'{{.Service.Name}}.{{.Task.Slot}}@{{.Node.Hostname}} {{env "LEVEL"}} {{secret "plain"}} {{config "plain"}}'
    for data in (payloads(text).config("c"), payloads(text).secret("c")):
        assert data == b"web.3@host1 high hunter2\xff {{raw}}"


@pytest.mark.parametrize(
    ("text", "driver", "error"),
    [
        (b"{{.Nope}}", GOLANG, "failed to expand templated config c: template: expansion:1"),
        (b'{{secret "x"}}', GOLANG, "secret target x not found"),
        (b'{{config "x"}}', GOLANG, "config target x not found"),
        (b'{{secret "gone"}}', GOLANG, "secret id-gone not found"),
        (b'{{config "gone"}}', GOLANG, "config id-gone not found"),
        (b"", api.Driver(name="jinja"), "unrecognized template type"),
    ],
)
def test_a_template_that_does_not_work_says_why(text: bytes, driver: api.Driver, error: str) -> None:
    with pytest.raises(TaskError) as caught:
        payloads(text, driver).config("c")
    assert error in caught.value.message
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        b'{{range secret "plain"}}{{end}}',
        b'{{secret (secret "plain")}}',
        b'{{config (secret "plain")}}',
        b'{{index .Service.Labels (secret "plain") "b"}}',
        b'{{$x := secret "plain"}}{{range $x}}{{end}}',
    ],
)
def test_an_error_shows_no_value_of_a_secret(text: bytes) -> None:
    for read in (payloads(text, GOLANG).config, payloads(text, GOLANG).secret):
        with pytest.raises(TaskError) as caught:
            read("c")
        assert "hunter2" not in caught.value.message
        assert caught.value.message.endswith(f"template: expansion:1:{_column(caught.value.message)}: {NOT_SHOWN}")


def _column(message: str) -> str:
    return message.split(": the error")[0].rpartition(":")[2]


@pytest.mark.parametrize(
    "text", [b"pass {{hunter2}}", b'{{template "hunter2"}}', b'pass\nhunter2 {{"hunter2', b"{{$hunter2}}"]
)
def test_an_error_in_a_templated_secret_shows_nothing_of_its_text(text: bytes) -> None:
    with pytest.raises(TaskError) as caught:
        payloads(text, GOLANG).secret("c")
    assert "hunter2" not in caught.value.message
    assert NOT_SHOWN in caught.value.message


def test_payloads_that_were_not_given_are_named() -> None:
    with pytest.raises(TaskError, match="unable to get secret from secret store: secret x not found"):
        payloads(b"").secret("x")
    with pytest.raises(TaskError, match="unable to get config from config store: config x not found"):
        payloads(b"").config("x")


def test_a_spec_with_a_bad_template_is_refused() -> None:
    task = api.Task()
    task.spec.container.hostname = "{{.Nope}}"
    with pytest.raises(TaskError, match="expanding hostname failed"):
        templates.container_spec(task, NODE)


def test_payloads_of_a_task_share_one_budget() -> None:
    task = api.Task(id="t1")
    text = b"{{.Task.ID}}" * 5000
    configs = {str(number): api.Config(spec=api.ConfigSpec(data=text, templating=GOLANG)) for number in range(40)}
    shared = templates.Payloads(task, NODE, {}, configs)
    assert shared.config("0") == b"t1" * 5000
    refused = "failed to expand templated config .*: the templates of this task's secrets and configs exceeded"
    with pytest.raises(TaskError, match=refused):
        [shared.config(name) for name in configs]


def test_a_payload_is_expanded_once_however_many_files_it_becomes() -> None:
    text = b"{{.Task.ID}}" * 5000
    shared = payloads(text)
    assert {shared.config("c") for _ in range(100)} == {b"t1" * 5000}
    assert {shared.secret("c") for _ in range(100)} == {b"t1" * 5000}


def test_only_templates_are_expanded_in_a_thread() -> None:
    assert payloads(b"x").templated
    assert not payloads(b"{{x}}", None).templated
