"""What templates may cost: no text, however it is made, costs more than the budget of its spec or task."""

from __future__ import annotations

import tracemalloc

import pytest

from swarm import api, defaults, template
from swarm.expansion import context, expand_container, expand_payload
from swarm.template import TemplateError, payload_budget, spec_budget
from swarm.template.budget import Budget

_WIDE = "\U0001f600"
_TEXT = "<" * 400_000
_MEMORY_BYTES_MAX = 48 << 20  # of a Python process beside the 1 MB of source; before there was a budget: 870 MB

# each costs hours, gigabytes or both where only steps are counted
DEAR = {
    "js of js of js": '{{$x := js "' + _TEXT + '"}}' + "{{$x = js $x}}" * 4900,
    "html": '{{$a := "' + _TEXT + '"}}' + "{{$x := html $a}}" * 3000,
    "urlquery": '{{$a := "' + _TEXT + '"}}' + "{{$x := urlquery $a}}" * 3000,
    "wide characters in variables": '{{$a := "'
    + _WIDE * 200_000
    + '"}}'
    + "".join(f"{{{{$x{number} := print $a `{number}`}}}}" for number in range(60)),
    "doubling": "{{$x := `aaaaaaaaaaaaaaaa`}}" + "{{$x = print $x $x}}" * 60,
    "widths": '{{printf "' + "%1000000d" * 100 + '"' + " 1" * 100 + "}}",
    "precisions": '{{printf "' + "%.1000000f" * 100 + '"' + " 1.5" * 100 + "}}",
    "verbs without values": '{{printf "' + "%d" * 400_000 + '"}}',
    "quotes": '{{$a := "' + _WIDE * 200_000 + '"}}{{printf "%q%q%q%q%q%q%q%q" $a $a $a $a $a $a $a $a}}',
    "a long separator": '{{$s := "' + _TEXT + '"}}{{join $s' + " $s" * 900 + "}}",
    "len": '{{$a := "' + _WIDE * 200_000 + '"}}' + "{{len $a}}" * 3000,
    "index": '{{$a := "' + _WIDE * 200_000 + '"}}' + "{{index $a 1}}" * 3000,
    "slice": '{{$a := "' + _WIDE * 200_000 + '"}}' + "{{slice $a 1}}" * 3000,
    "comparisons": '{{$a := "' + _TEXT + '"}}{{$b := print $a 1}}{{$c := print $a 2}}{{eq $b' + " $c" * 900 + "}}",
    "less": '{{$a := "' + _TEXT + '"}}{{$b := print $a 1}}{{$c := print $a 2}}' + "{{lt $b $c}}" * 3000,
    "output": '{{$a := "' + _TEXT + '"}}' + "{{$a}}" * 3000,
    "a called template": '{{define "a"}}' + _TEXT + "{{end}}" + '{{template "a"}}' * 3000,
    "actions": "{{1}}" * 200_000,
    "comments": "{{/**/}}" * 140_000,
    "variables": "{{$a := 1}}" * 90_000,
    "variables of many names": "".join(f"{{{{$v{number}:=$}}}}" for number in range(60_000)),
    "arguments": "{{print" + " 1" * 500_000 + "}}",
    "pipes": "{{1" + "|print" * 150_000 + "}}",
    "templates": "".join(f'{{{{define "{number}"}}}}a{{{{end}}}}' for number in range(40_000)),
}
# these are mistakes, or cost nothing
CHEAP = {
    "an open string": '{{"' + "a" * 1_000_000,
    "an open string of escapes": '{{"' + "\\a" * 500_000,
    "an open character": "{{'" + "a" * 1_000_000,
    "a long number": "{{" + "1" * 1_000_000 + "}}",
    "a long hexadecimal number": "{{0x" + "f" * 1_000_000 + "}}",
    "a long field": "{{." + "a" * 1_000_000 + "}}",
    "a long function": "{{" + "a" * 1_000_000 + "}}",
    "a long variable": "{{$" + "a" * 1_000_000 + "}}",
    "parentheses": "{{" + "(" * 1_000_000,
    "a field of a long text": '{{(print "' + "a" * 1_000_000 + '").x}}',
    "a width of many digits": '{{printf "%' + "1" * 5_000 + 'd" 1}}{{.Nope}}',
    "a precision of many digits": '{{printf "%.' + "1" * 5_000 + 'd" 1}}{{.Nope}}',
}


def task_with(*entries: str) -> api.Task:
    task = api.Task(service_id="sid", slot=1)
    task.spec.container.env.extend(entries)
    return task


def peak_of_spec(text: str) -> tuple[int, str]:
    """Bytes of memory at most, and the error."""
    task = task_with(f"A={text}")
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError) as caught:
            expand_container(None, task)
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", DEAR)
def test_a_dear_template_in_a_spec_is_refused_with_the_limit_in_the_text(name: str) -> None:
    peak, text = peak_of_spec(DEAR[name])
    assert peak < _MEMORY_BYTES_MAX
    assert "the templates of this spec " in text
    assert str(defaults.TEMPLATE_SPEC_STEPS_MAX) in text or str(defaults.TEMPLATE_SPEC_BYTES_MAX) in text


@pytest.mark.parametrize("name", DEAR)
def test_a_dear_template_in_a_payload_costs_no_more_than_its_budget(name: str) -> None:
    budget = payload_budget()
    try:
        expand_payload(DEAR[name].encode(), None, task_with(), {}, budget)
    except TemplateError as error:
        assert "the templates of this task's secrets and configs " in str(error)  # noqa: PT017 - it may also pass
    assert budget.steps_left > -defaults.TEMPLATE_PAYLOAD_STEPS_MAX
    assert budget.bytes_left > -defaults.TEMPLATE_PAYLOAD_BYTES_MAX


@pytest.mark.parametrize("name", CHEAP)
def test_a_long_mistake_is_told_shortly(name: str) -> None:
    peak, text = peak_of_spec(CHEAP[name])
    assert peak < _MEMORY_BYTES_MAX
    assert "expanding env failed: expanding env " in text
    assert "template: expansion:1:" in text
    assert len(text) < 8_000


def test_all_templates_of_a_spec_share_one_budget() -> None:
    entry = "A={{.Node.Hostname}}"
    expanded = expand_container(None, task_with(*[entry] * 200))
    assert list(expanded.env) == ["A="] * 200
    with pytest.raises(TemplateError, match="the templates of this spec exceeded 5000 steps"):
        expand_container(None, task_with(*[entry] * 1000))
    task = task_with(*[entry] * 200)
    task.spec.container.hostname = "{{.Task.Slot}}" * 2000
    with pytest.raises(TemplateError, match=r"^expanding hostname failed: .* exceeded 5000 steps"):
        expand_container(None, task)
    task = task_with(*[entry] * 200)
    for number in range(1000):
        options = task.spec.container.mounts.add(target=f"/{number}").volume_options
        options.labels["k"] = "{{.Task.Slot}}"
    with pytest.raises(TemplateError, match=r"^expanding mounts failed: expanding volume labels.* exceeded 5000 steps"):
        expand_container(None, task)


def test_text_without_templates_costs_nothing() -> None:
    task = task_with(*["A=" + "x" * 1000] * 6000)
    assert expand_container(None, task).env[5999] == "A=" + "x" * 1000


def test_a_wide_character_costs_four_bytes() -> None:
    budget = Budget("a test", 100, 44)
    assert template.expand("{{`a`}}", context(None, api.Task()), budget) == "a"
    assert budget.bytes_left == 44 - len("{{`a`}}") - 1
    budget = Budget("a test", 100, 44)
    assert template.expand("{{`\u00e9`}}", context(None, api.Task()), budget) == "\u00e9"
    assert budget.bytes_left == 44 - 4 * len("{{`a`}}") - 4


def test_showing_and_ranging_over_many_labels_is_paid_by_the_entry() -> None:
    task = task_with("A={{range .Service.Labels}}{{end}}")
    task.service_annotations.labels.update({str(number): "" for number in range(6000)})
    with pytest.raises(TemplateError, match="exceeded 5000 steps"):
        expand_container(None, task)
    for text in ("A={{.Service}}", "A={{print .Service.Labels}}", 'A={{printf "%v" .Service}}', 'A={{printf "%d" .}}'):
        del task.spec.container.env[:]
        task.spec.container.env.append(text)
        with pytest.raises(TemplateError, match="exceeded 5000 steps"):
            expand_container(None, task)


def test_a_budget_that_is_used_up_stays_so() -> None:
    budget = spec_budget()
    with pytest.raises(TemplateError):
        template.expand("{{1}}" * 10_000, context(None, api.Task()), budget)
    with pytest.raises(TemplateError, match="exceeded 5000 steps"):
        template.expand("{{1}}", context(None, api.Task()), budget)


def test_bytes_that_are_not_utf8_can_be_used_everywhere_in_a_payload() -> None:
    functions = (
        "len $x",
        "index $x 0",
        "slice $x 0 1",
        "js $x",
        "html $x",
        "urlquery $x",
        'printf "%x%q%X" $x $x $x',
        "eq $x `a`",
    )
    for function in functions:
        data = b"{{$x := `\xff\xfe`}}\xff{{" + function.encode() + b"}}"
        assert expand_payload(data, None, task_with(), {}).startswith(b"\xff")
    with pytest.raises(TemplateError, match=r"template: expansion:1:3: executing"):
        expand_payload(b"\xff{{.X}}", None, task_with(), {})
