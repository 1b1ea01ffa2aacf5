"""What names mean."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from overlay.model import Endpoint, NetworkState, Node, Readiness, Service
from overlay.names import Names
from tests.overlay.book import DRAINING, READY, STARTING, network, service, task

CLIENT = "10.0.1.200"


def names_of(*states: NetworkState) -> Names:
    names = Names()
    names.replace({state.network.id: state for state in states})
    return names


def look_up(names: Names, name: str, *, on: str = "net", client: str = CLIENT) -> set[str] | None:
    found = names.addresses(on, IPv4Address(client), name)
    assert found is None or len(set(found)) == len(found)
    return None if found is None else {str(IPv4Address(address)) for address in found}


def test_a_service_is_its_virtual_address_and_tasks_dot_service_its_tasks() -> None:
    names = names_of(
        network("net", service("web", "10.0.1.5"), task("t1", "10.0.1.11", "web"), task("t2", "10.0.1.12", "web"))
    )
    assert look_up(names, "web") == {"10.0.1.5"}
    assert look_up(names, "tasks.web") == {"10.0.1.11", "10.0.1.12"}
    assert look_up(names, "other") is None
    assert look_up(names, "tasks.other") is None


def test_a_service_without_virtual_address_is_its_tasks() -> None:
    names = names_of(network("net", service("web"), task("t1", "10.0.1.11", "web"), task("t2", "10.0.1.12", "web")))
    assert look_up(names, "web") == look_up(names, "tasks.web") == {"10.0.1.11", "10.0.1.12"}


def test_no_service_name_leads_to_a_task_that_starts_or_drains() -> None:
    names = names_of(
        network(
            "net",
            service("web", None, "www"),
            task("t1", "10.0.1.11", "web", STARTING),
            task("t2", "10.0.1.12", "web"),
            task("t3", "10.0.1.13", "web", DRAINING),
        )
    )
    for name in ("web", "www", "tasks.web", "tasks.www"):
        assert look_up(names, name) == {"10.0.1.12"}


def test_a_service_of_which_nothing_is_ready_keeps_its_name() -> None:
    starting = task("t1", "10.0.1.11", "web", STARTING, "web")
    names = names_of(network("net", service("web"), service("api", "10.0.1.6"), starting))
    assert look_up(names, "web") == set()
    assert look_up(names, "tasks.web") == set()
    assert look_up(names, "api") == {"10.0.1.6"}
    assert look_up(names, "tasks.api") == set()


def test_a_container_that_starts_does_not_stand_in_for_a_service() -> None:
    other = task("c1", "10.0.1.13", "", STARTING, "web", "api")
    names = names_of(network("net", service("web"), service("api", "10.0.1.6"), other))
    assert look_up(names, "web") == set()
    assert look_up(names, "api") == {"10.0.1.6"}
    names.replace({"net": network("net", service("web"), replace(other, readiness=READY))})
    assert look_up(names, "web") == {"10.0.1.13"}


def test_a_name_is_gone_with_its_service() -> None:
    names = names_of(network("net", service("web"), task("t1", "10.0.1.11", "web")))
    assert look_up(names, "web") == {"10.0.1.11"}
    names.replace({"net": network("net", task("t1", "10.0.1.11", "web"))})
    assert look_up(names, "web") is None
    assert look_up(names, "web.1.t1") == {"10.0.1.11"}
    names.replace({"net": network("net")})
    assert look_up(names, "web.1.t1") is None


def test_containers_are_reached_by_name_and_alias_in_every_state() -> None:
    names = names_of(
        network(
            "net",
            task("t1", "10.0.1.11", "web", STARTING, "first"),
            task("t2", "10.0.1.12", "web", DRAINING),
            task("c1", "10.0.1.13", name="Toolbox"),
        )
    )
    assert look_up(names, "web.1.t1") == look_up(names, "first") == {"10.0.1.11"}
    assert look_up(names, "web.1.t2") == {"10.0.1.12"}
    assert look_up(names, "toolbox") == {"10.0.1.13"}


def test_containers_that_share_an_alias_are_preferred_when_ready() -> None:
    state = network("net", task("t1", "10.0.1.11", "", STARTING, "db"), task("t2", "10.0.1.12", "", READY, "db"))
    names = names_of(state)
    assert look_up(names, "db") == {"10.0.1.12"}
    ready = replace(state.endpoints["t1"], readiness=READY)
    names.replace({"net": replace(state, endpoints={**state.endpoints, "t1": ready})})
    assert look_up(names, "db") == {"10.0.1.11", "10.0.1.12"}


def test_services_that_share_an_alias_are_all_meant() -> None:
    blue, green = service("blue", "10.0.1.5", "web"), service("green", None, "web")
    tasks = [task("b1", "10.0.1.11", "blue"), task("g1", "10.0.1.12", "green"), task("g2", "10.0.1.13", "green")]
    names = names_of(network("net", blue, green, *tasks))
    assert look_up(names, "web") == {"10.0.1.5", "10.0.1.12", "10.0.1.13"}
    assert look_up(names, "tasks.web") == {"10.0.1.11", "10.0.1.12", "10.0.1.13"}


def test_of_services_that_share_an_alias_those_that_are_ready_are_meant() -> None:
    blue, green = service("blue", "10.0.1.5", "web"), service("green", "10.0.1.6", "web")
    names = names_of(network("net", blue, green, task("g1", "10.0.1.12", "green")))
    assert look_up(names, "web") == {"10.0.1.6"}
    names.replace({"net": network("net", blue, green)})
    assert look_up(names, "web") == {"10.0.1.5", "10.0.1.6"}


def test_an_alias_that_a_service_and_its_own_tasks_have_is_the_service() -> None:
    names = names_of(network("net", service("web", "10.0.1.5", "www"), task("t1", "10.0.1.11", "web", READY, "www")))
    assert look_up(names, "www") == {"10.0.1.5"}


def test_tasks_on_a_suspected_node_are_the_last_choice_and_are_kept() -> None:
    members = (service("web"), task("t1", "10.0.1.11", "web", node="n1"), task("t2", "10.0.1.12", "web", node="n2"))
    names = names_of(network("net", *members))
    assert look_up(names, "web") == {"10.0.1.11", "10.0.1.12"}
    for suspected, meant in (
        (["n1"], {"10.0.1.12"}),
        (["n1", "n2"], {"10.0.1.11", "10.0.1.12"}),
        ([], {"10.0.1.11", "10.0.1.12"}),
    ):
        names.replace({"net": network("net", *members, suspected=suspected)})
        assert look_up(names, "web") == look_up(names, "tasks.web") == meant


def test_a_client_sees_the_names_of_all_its_networks_and_first_of_the_one_where_it_asks() -> None:
    front = network("f", service("web", "10.0.1.5"), task("t1", "10.0.1.11"), name="front")
    back = network("b", service("web", "10.0.2.5"), service("db", "10.0.2.6"), task("t1", "10.0.2.11"), name="back")
    other = network("o", service("secret", "10.0.3.5"), service("db", "10.0.3.6"), name="aaa")
    names = names_of(front, back, other)
    assert look_up(names, "web", on="f", client="10.0.1.11") == {"10.0.1.5"}
    assert look_up(names, "web", on="b", client="10.0.2.11") == {"10.0.2.5"}
    assert look_up(names, "db", on="f", client="10.0.1.11") == {"10.0.2.6"}
    assert look_up(names, "secret", on="f", client="10.0.1.11") is None
    assert look_up(names, "db", on="f", client="10.0.1.99") is None, "a client that nobody knows has only this network"


def test_other_networks_are_asked_in_the_order_of_their_names() -> None:
    states = [network("n0", task("t1", "10.0.1.11"))]
    for number, name in enumerate(("zoo", "bar", "foo"), 2):
        states.append(network(f"n{number}", service("db", f"10.0.{number}.5"), task("t1", "10.0.9.9"), name=name))
    names = names_of(*states)
    assert look_up(names, "db", on="n0", client="10.0.1.11") == {"10.0.3.5"}


def test_a_task_with_several_addresses_in_a_network_is_one_client() -> None:
    front = network("f", task("t1", "10.0.1.11"), task("t1/1", "10.0.1.12"))
    back = network("b", service("db", "10.0.2.6"), task("t1", "10.0.2.11"))
    names = names_of(front, back)
    assert look_up(names, "db", on="f", client="10.0.1.12") == {"10.0.2.6"}
    assert look_up(names, "c.1.t1", on="f", client="10.0.1.12") == {"10.0.1.11"}


def test_a_client_that_joins_a_network_later_sees_its_names() -> None:
    front, back = network("f", task("t1", "10.0.1.11")), network("b", service("db", "10.0.2.6"))
    names = names_of(front, back)
    assert look_up(names, "db", on="f", client="10.0.1.11") is None
    joined = replace(back, endpoints={"t1": task("t1", "10.0.2.11")})
    names.replace({"f": front, "b": joined})
    assert look_up(names, "db", on="f", client="10.0.1.11") == {"10.0.2.6"}
    names.replace({"f": front, "b": back})
    assert look_up(names, "db", on="f", client="10.0.1.11") is None


def test_names_may_end_with_the_networks_name() -> None:
    front = network("f", service("web", "10.0.1.5"), task("t1", "10.0.1.11"), name="Front.Net")
    back = network("b", service("web", "10.0.2.5"), task("t1", "10.0.2.11"), name="back")
    names = names_of(front, back)
    assert look_up(names, "web.back", on="f", client="10.0.1.11") == {"10.0.2.5"}
    assert look_up(names, "web.front.net", on="b", client="10.0.2.11") == {"10.0.1.5"}
    assert look_up(names, "tasks.web.back", on="f", client="10.0.1.11") == set()
    assert look_up(names, "web.other", on="f", client="10.0.1.11") is None
    assert look_up(names, "front.net", on="f", client="10.0.1.11") is None


def test_of_networks_at_the_end_of_a_name_the_shortest_goes_first() -> None:
    names = names_of(
        network("a", service("web", "10.0.1.5"), task("t1", "10.0.1.11"), name="c.d"),
        network("b", service("web.c", "10.0.2.5"), task("t1", "10.0.2.11"), name="d"),
    )
    assert look_up(names, "web.c.d", on="a", client="10.0.1.11") == {"10.0.2.5"}


def test_a_whole_name_goes_before_one_that_ends_with_a_network() -> None:
    front = network("f", service("web", "10.0.1.5", "web.back"), task("t1", "10.0.1.11"), name="front")
    back = network("b", service("web", "10.0.2.5"), task("t1", "10.0.2.11"), name="back")
    assert look_up(names_of(front, back), "web.back", on="b", client="10.0.2.11") == {"10.0.1.5"}


def test_the_ingress_network_has_no_names() -> None:
    ingress = network("i", service("web", "10.0.1.5"), task("t1", "10.0.1.11", "web"), name="ingress", ingress=True)
    front = network("f", service("db", "10.0.2.5"), task("t1", "10.0.2.11", "web"))
    names = names_of(ingress, front)
    assert look_up(names, "web", on="f", client="10.0.2.11") is None
    assert look_up(names, "web.ingress", on="f", client="10.0.2.11") is None
    assert look_up(names, "db", on="i", client="10.0.1.11") == {"10.0.2.5"}


def pointer(names: Names, name: str, *, on: str = "net", client: str = CLIENT) -> str | None:
    return names.pointer(on, IPv4Address(client), name)


def test_addresses_have_names_with_the_networks_name_behind() -> None:
    names = names_of(network("net", service("web", "10.0.1.5"), task("t1", "10.0.1.11", "web"), name="front"))
    assert pointer(names, "11.1.0.10.in-addr.arpa") == "web.1.t1.front"
    assert pointer(names, "5.1.0.10.in-addr.arpa") == "web.front"
    for unknown in (
        "12.1.0.10.in-addr.arpa",
        "1.0.10.in-addr.arpa",
        "x.1.0.10.in-addr.arpa",
        "256.1.0.10.in-addr.arpa",
    ):
        assert pointer(names, unknown) is None
    for other in ("in-addr.arpa", ".in-addr.arpa", "11.1.0.10.ip6.arpa", "web"):
        assert pointer(names, other) is None


def test_an_address_that_moves_to_another_container_has_the_new_name() -> None:
    names = names_of(network("net", task("t1", "10.0.1.11", "web"), name="front"))
    assert pointer(names, "11.1.0.10.in-addr.arpa") == "web.1.t1.front"
    names.replace({"net": network("net", task("t2", "10.0.1.11", "api"), name="front")})
    assert pointer(names, "11.1.0.10.in-addr.arpa") == "api.1.t2.front"
    assert look_up(names, "web.1.t1") is None


def test_nothing_is_known_of_a_network_until_the_managers_told() -> None:
    names = Names()
    assert not names.knows("net")
    names.replace({"net": network("net")})
    assert names.knows("net")
    names.replace({})
    assert not names.knows("net")


NAME = st.sampled_from(("web", "api", "db", "a.b"))
ADDRESS = st.integers(10, 14).map(lambda last: IPv4Address(f"10.0.1.{last}"))
SERVICES = st.dictionaries(
    st.sampled_from(("s1", "s2", "s3")),
    st.builds(Service, st.just(""), NAME, st.none() | ADDRESS, st.lists(NAME, max_size=2).map(tuple)),
).map(lambda found: {id: replace(one, id=id) for id, one in found.items()})
ENDPOINTS = st.dictionaries(
    st.sampled_from(("t1", "t2", "t2/1", "t3", "t4")),
    st.builds(
        Endpoint,
        st.just(""),
        st.sampled_from(("n1", "n2", "gone")),
        ADDRESS,
        st.sampled_from(Readiness),
        st.sampled_from(("", "s1", "s2", "s9")),
        NAME | st.just(""),
        st.lists(NAME, max_size=2).map(tuple),
    ),
).map(lambda found: {id: replace(one, id=id) for id, one in found.items()})
NODES = st.sets(st.sampled_from(("n1", "n2"))).map(
    lambda bad: {one: Node(one, one, IPv4Address(1), None, one in bad) for one in ("n1", "n2")}
)
STATES = st.lists(st.tuples(NODES, SERVICES, ENDPOINTS), min_size=1, max_size=5)


@given(STATES)
def test_an_index_that_followed_changes_equals_a_new_one(steps: list[tuple[dict, dict, dict]]) -> None:
    followed, other = Names(), network("other", service("web", "10.0.2.5"), task("t2", "10.0.2.9"), name="zz")
    base = network("net", name="front")
    for nodes, services, endpoints in steps:
        states = {"net": NetworkState(base.network, nodes, services, endpoints), "other": other}
        followed.replace(states)
        new = Names()
        new.replace(states)
        for client in range(10, 15):
            address = IPv4Address(f"10.0.1.{client}")
            reverse = f"{client}.1.0.10.in-addr.arpa"
            assert followed.pointer("net", address, reverse) == new.pointer("net", address, reverse)
            for name in ("web", "api", "db", "a.b", "tasks.web", "tasks.a.b", "web.front", "tasks.db.front", "nothing"):
                assert followed.addresses("net", address, name) == new.addresses("net", address, name)
