"""Templates against what Go prints (texts of errors as recorded, or read in text/template)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import api, defaults, template
from swarm.expansion import context, env_function, expand_container, expand_payload
from swarm.template import FunctionError, TemplateError, getter, payload_budget


def _task() -> api.Task:
    task = api.Task(id="tid", service_id="sid", slot=3, node_id="nid")
    task.service_annotations.name = "web"
    task.service_annotations.labels.update({"c": "d", "a": "b"})
    task.spec.container.env.extend(["PORT=80", "EMPTY=", "BARE"])
    return task


def expand(text: str, data: Any) -> str:
    return template.expand(text, data, payload_budget())


_NODE = api.NodeDescription(hostname="h1", platform=api.Platform(architecture="x86_64", os="linux"))
_DATA = context(_NODE, _task())

OUTPUTS = {
    "no actions": "no actions",
    "{{.Service.ID}} {{.Service.Name}} {{.Node.ID}} {{.Node.Hostname}}": "sid web nid h1",
    "{{.Node.Platform.Architecture}}/{{.Node.Platform.OS}}": "x86_64/linux",
    "{{.Task.ID}} {{.Task.Name}} {{.Task.Slot}}": "tid web.3.tid 3",
    '{{index .Service.Labels "a"}}[{{index .Service.Labels "missing"}}]': "b[]",
    "{{.Service.Labels.a}}": "b",
    '{{join "-" .Service.Name .Task.Slot}}': "web-3",
    "a {{- .Task.Slot -}} b": "a3b",
    "a {{- /* words */ -}} b": "ab",
    "{{ 3 -}} x": "3x",
    "{{if eq .Service.Name `web`}}yes{{else}}no{{end}}": "yes",
    "{{if false}}1{{else if .Task.Slot}}2{{else}}3{{end}}": "2",
    "{{with $x := .Service}}{{.Name}}{{$x.ID}}{{$.Task.ID}}{{end}}": "websidtid",
    "{{range $k, $v := .Service.Labels}}{{$k}}={{$v}};{{end}}": "a=b;c=d;",
    "{{range .Service.Labels}}{{.}}{{else}}none{{end}}": "bd",
    "{{range .Service.Labels}}{{break}}x{{end}}{{range .Service.Labels}}{{continue}}x{{end}}|": "|",
    '{{define "t"}}<{{.}}>{{end}}{{template "t" .Task.ID}}{{block "b" 5}}[{{.}}]{{end}}': "<tid>[5]",
    '{{printf "%05d %x %v %t %T %.2f %c %U %%" 42 255 1.5 true .Service.Labels 1.0 97 97}}': (
        "00042 ff 1.5 true map[string]string 1.00 a U+0061 %"
    ),
    '{{printf "%d" "x"}} {{printf "%s" 3}} {{printf "a" 1}}': "%!d(string=x) %!s(int=3) a%!(EXTRA int=1)",
    "{{$x := 1}}{{if true}}{{$x = 2}}{{$y := 3}}{{end}}{{$x}}": "2",
    "{{not false}} {{and 1 0 2}} {{or 0 `` `x`}} {{len `abc`}} {{lt 1 2}} {{ge `b` `a`}} {{ne 1 2}}": (
        "true 0 x 3 true true true"
    ),
    "{{and false (index `abc` 9)}}": "false",
    "{{print 1 2 `x` 3 4.5e20}} {{println 1 `x`}}": "1 2x3 4.5e+20 1 x\n",
    '{{html `<a b="c">`}} {{urlquery `a b&c`}} {{js `it\'s`}}': "&lt;a b=&#34;c&#34;&gt; a+b%26c it\\'s",
    "{{slice `abcdef` 1 3}}": "bc",
    "{{0x1F}} {{017}} {{0b11}} {{1_000}} {{'a'}} {{-3}} {{1e3}} {{.5}}": "31 15 3 1000 97 -3 1000 0.5",
    '{{"\\x41\\u00e9\\n\\101"}}': "Aé\nA",
    "{{.Service}}": "{sid web map[a:b c:d]}",
    "{{(printf `%s` .Service.Name) | len}}": "3",
    "{{ .Service.Name\n}}": "web",
}


@pytest.mark.parametrize("text", OUTPUTS)
def test_templates_that_work(text: str) -> None:
    assert expand(text, _DATA) == OUTPUTS[text]


_X = 'executing "expansion" at'
_SERVICE = "struct { ID string; Name string; Labels map[string]string }"
ERRORS = {
    "{{.Nope}}": f"1:2: {_X} <.Nope>: can't evaluate field Nope in type *template.Context",
    "{{.Service.Nope}}": f"1:10: {_X} <.Service.Nope>: can't evaluate field Nope in type {_SERVICE}",
    "{{.Service.Name.X}}": f"1:10: {_X} <.Service.Name.X>: can't evaluate field X in type string",
    "{{.Node.Platform.X}}": f"1:7: {_X} <.Node.Platform.X>: can't evaluate field X in type template.Platform",
    "\n\n é{{.Service.Labels.x}}": f'3:13: {_X} <.Service.Labels.x>: map has no entry for key "x"',
    "{{index .Service.Name `x`}}": (
        f"1:2: {_X} <index .Service.Name `x`>: error calling index: cannot index slice/array with type string"
    ),
    "{{index .Service.Name 9}}": f"1:2: {_X} <index .Service.Name 9>: error calling index: index out of range: 9",
    "{{join 3}}": f"1:7: {_X} <3>: expected string; found 3",
    "{{join}}": f"1:2: {_X} <join>: error calling join: runtime error: slice bounds out of range [1:0]",
    "{{join `-` (len `a`)}}": f"1:12: {_X} <len `a`>: wrong type for value; expected string; got int",
    "{{not}}": f"1:2: {_X} <not>: wrong number of args for not: want 1 got 0",
    "{{.Service.Name 3}}": f"1:10: {_X} <.Service.Name>: Name has arguments but cannot be invoked as function",
    "{{1 2}}": f"1:2: {_X} <1>: can't give argument to non-function 1",
    "{{nil}}": f"1:2: {_X} <nil>: nil is not a command",
    "{{eq 1 `a`}}": f"1:2: {_X} <eq 1 `a`>: error calling eq: incompatible types for comparison",
    "{{lt true false}}": f"1:2: {_X} <lt true false>: error calling lt: invalid type for comparison",
    "{{range .Service.Name}}{{end}}": f"1:8: {_X} <{{{{range .Service.Name}}}}>: range can't iterate over web",
    '{{template "x"}}': f'1:11: {_X} <{{{{template "x"}}}}>: template "x" not defined',
    "{{99999999999999999999}}": f"1:2: {_X} <99999999999999999999>: 99999999999999999999 overflows int",
    "{{": "1: unclosed action",
    "{{.Foo": "1: unclosed action",
    "a\n{{.Foo\n": "3: unclosed action started at expansion:2",
    "{{.Service.Name}": "1: bad character U+007D '}'",
    "{{end}}": "1: unexpected {{end}}",
    "{{else}}": "1: unexpected {{else}}",
    "{{}}": "1: missing value for command",
    "{{if}}{{end}}": "1: missing value for if",
    "{{if .X}}": "1: unexpected EOF",
    "{{if .X}}{{else}}{{else}}{{end}}": "1: expected end; found {{else}}",
    "{{foo}}": '1: function "foo" not defined',
    "{{$x}}": '1: undefined variable "$x"',
    "{{$x = 1}}": '1: undefined variable "$x"',
    "{{if true}}{{$x := 1}}{{end}}{{$x}}": '1: undefined variable "$x"',
    "{{$a, $b := 1}}": "1: too many declarations in command",
    "{{1 | `x`}}": "1: non executable command in pipeline stage 2",
    "{{true.x}}": '1: unexpected . after term "true"',
    "{{`a": "1: unterminated raw quoted string",
    '{{"a': "1: unterminated quoted string",
    "{{'ab'}}": "1: malformed character constant: 'ab'",
    "{{08}}": '1: illegal number syntax: "08"',
    "{{3x}}": '1: bad number syntax: "3x"',
    "{{/* a": "1: unclosed comment",
    "{{/* a */ }}": "1: comment ends before closing delimiter",
    "{{(1}}": "1: unclosed left paren",
    "{{1)}}": "1: unexpected right paren U+0029 ')'",
    "{{break}}": "1: {{break}} outside {{range}}",
    "{{.A,}}": '1: unexpected "," in operand',
    "{{\x01}}": "1: unrecognized character in action: U+0001",
    '{{define "a"}}1{{end}}{{define "a"}}2{{end}}': '1: template: multiple definition of template "a"',
}


@pytest.mark.parametrize("text", ERRORS)
def test_mistakes_are_reported_as_go_does(text: str) -> None:
    with pytest.raises(TemplateError) as caught:
        expand(text, _DATA)
    assert str(caught.value) == f"template: expansion:{ERRORS[text]}"


@pytest.mark.parametrize(
    "text",
    [
        '{{define "a"}}{{template "a"}}{{end}}{{template "a"}}',
        '{{define "a"}}{{block "b" .}}x{{end}}{{template "a" .}}{{end}}{{template "a" .}}',
        "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
        "{{if true}}" * 5000 + "{{end}}" * 5000,
        "{{if false}}" + "{{else if false}}" * 5000 + "{{end}}",
        '{{printf "%999999999d" 1}}' * 2 + "{{.Nope}}",
        '{{define "0"}}{{printf "%999999s" `x`}}{{end}}' + '{{template "0"}}' * 50,
        "".join(
            f'{{{{define "{n}"}}}}{{{{template "{n - 1}"}}}}{{{{template "{n - 1}"}}}}{{{{end}}}}' for n in range(1, 40)
        )
        + '{{define "0"}}{{end}}{{template "39"}}',
    ],
)
def test_a_template_cannot_exceed_its_limits(text: str) -> None:
    with pytest.raises(TemplateError):
        expand(text, _DATA)


def test_the_limits_leave_room_for_big_payloads() -> None:
    text = "x" * 500_000 + "{{.Service.Name}}" * 2000
    assert len(expand(text, _DATA)) == 500_000 + 3 * 2000
    assert defaults.TEMPLATE_PAYLOAD_BYTES_MAX > 16 * defaults.CONFIG_BYTES_MAX


_PIECES = [
    "{{",
    "}}",
    ".",
    ".A",
    "$x",
    ":=",
    "|",
    "(",
    ")",
    '"a"',
    "`",
    "'",
    ",",
    "if",
    "else",
    "end",
    "range",
    "with",
    "define",
    "template",
    "block",
    "break",
    "nil",
    "1",
    "-",
    "=",
    "join",
    "index",
    ".Service",
    ".Labels",
    "é",
    "/*",
    "*/",
    "{{-",
    "-}}",
    "printf",
    "and",
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([*_PIECES, " ", "\n"]),
        max_size=30,
    ).map("".join)
)
def test_any_text_either_expands_or_is_a_template_error(text: str) -> None:
    try:
        outcome = "text" + expand(text, _DATA)
    except TemplateError as error:
        outcome = str(error)
    assert outcome.startswith(("text", "template: expansion:"))


def test_text_without_actions_is_left_alone_byte_by_byte() -> None:
    text = "}} { { .Service }\r\n\x00é"
    assert expand(text, _DATA) == text


def test_a_task_without_a_slot_is_named_after_its_node() -> None:
    task = _task()
    task.slot = 0
    assert expand("{{.Task.Slot}} {{.Task.Name}}", context(None, task)) == "nid web.nid.tid"
    assert expand("[{{.Node.Hostname}}]", context(None, task)) == "[]"


def test_a_container_is_expanded_where_templates_are_allowed() -> None:
    task = _task()
    container = task.spec.container
    container.env.extend(["N={{.Service.Name}}", "{{.Nope}}"])
    container.hostname = "{{.Node.Hostname}}-{{.Task.Slot}}"
    container.args.append("{{.Service.Name}}")
    mount = container.mounts.add(source="v-{{.Task.Slot}}", target="/{{.Service.Name}}")
    mount.volume_options.labels["k"] = "{{.Task.ID}}"
    mount.volume_options.driver_config.options["o"] = "{{.Node.ID}}"
    before = task.SerializeToString(deterministic=True)
    expanded = expand_container(_NODE, task)
    assert list(expanded.env) == ["PORT=80", "EMPTY=", "BARE", "N=web", "{{.Nope}}"]
    assert (expanded.hostname, list(expanded.args)) == ("h1-3", ["{{.Service.Name}}"])
    assert (expanded.mounts[0].source, expanded.mounts[0].target) == ("v-3", "/web")
    assert dict(expanded.mounts[0].volume_options.labels) == {"k": "tid"}
    assert dict(expanded.mounts[0].volume_options.driver_config.options) == {"o": "nid"}
    assert task.SerializeToString(deterministic=True) == before


def test_errors_in_a_container_say_where() -> None:
    def text_of(change: Any) -> str:
        task = _task()
        change(task.spec.container)
        with pytest.raises(TemplateError) as caught:
            expand_container(_NODE, task)
        return str(caught.value).partition("template: ")[0]

    assert text_of(lambda c: c.env.append("A={{.X}}")) == 'expanding env failed: expanding env "A={{.X}}": '
    assert text_of(lambda c: setattr(c, "hostname", "{{.X}}")) == "expanding hostname failed: "
    mounts = "expanding mounts failed: expanding "
    assert text_of(lambda c: c.mounts.add(source="{{.X}}")) == f'{mounts}mount source "{{{{.X}}}}": '
    assert text_of(lambda c: c.mounts.add(target="{{.X}}")) == f'{mounts}mount target "{{{{.X}}}}": '

    def label(container: api.ContainerSpec) -> None:
        container.mounts.add().volume_options.labels["k"] = "{{.X}}"

    def option(container: api.ContainerSpec) -> None:
        container.mounts.add().volume_options.driver_config.options["k"] = "{{.X}}"

    assert text_of(label) == f'{mounts}volume labels: expanding map entry "k"="{{{{.X}}}}": '
    assert text_of(option) == f'{mounts}volume driver config: expanding map entry "k"="{{{{.X}}}}": '


def test_payloads_have_functions_of_their_own_and_keep_odd_bytes() -> None:
    task = _task()

    def secret(target: str) -> str:
        if target != "db":
            raise FunctionError(f"secret target {target} not found")
        return "hunter2"

    functions = {"secret": getter(secret), "env": env_function(task)}
    data = b'\xff {{secret "db"}} {{env "PORT"}}[{{env "EMPTY"}}{{env "BARE"}}{{env "NONE"}}]'
    assert expand_payload(data, None, task, functions) == b"\xff hunter2 80[]"
    with pytest.raises(TemplateError, match=r"error calling secret: secret target x not found$"):
        expand_payload(b'{{secret "x"}}', None, task, functions)
    with pytest.raises(TemplateError, match=r'function "config" not defined'):
        expand_payload(b'{{config "x"}}', None, task, functions)
    with pytest.raises(TemplateError, match=r"in type \*template.PayloadContext"):
        expand_payload(b"{{.X}}", None, task, functions)
