"""The constants of swarm.api.rpc and the types that mypy takes from them."""

from typing import Any, get_args, get_type_hints

import pytest

from swarm import api
from swarm.api import rpc
from swarm.api.methods import METHODS, Method

HINTS: dict[str, Any] = {
    name: hint for name, hint in get_type_hints(rpc).items() if name.isupper() and name != "METHODS"
}


def test_each_method_of_the_table_has_one_constant() -> None:
    constants = [getattr(rpc, name) for name in HINTS]
    assert sorted(method.name for method in constants) == sorted(METHODS)
    assert all(method is METHODS[method.name] for method in constants)


@pytest.mark.parametrize("name", sorted(HINTS))
def test_a_constant_has_the_types_of_its_descriptor(name: str) -> None:
    method: Method[Any, Any] = getattr(rpc, name)
    assert get_args(HINTS[name]) == (method.request, method.response)


def test_a_method_passes_its_own_messages_and_refuses_others() -> None:
    request = api.CreateServiceRequest()
    assert rpc.CREATE_SERVICE.checked_request(request) is request
    with pytest.raises(TypeError, match="Control/CreateService was asked with NoneType"):
        rpc.CREATE_SERVICE.checked_request(None)
    response = api.CreateServiceResponse()
    assert rpc.CREATE_SERVICE.checked_response(response) is response
    with pytest.raises(TypeError, match="Control/CreateService was answered with UpdateServiceResponse"):
        rpc.CREATE_SERVICE.checked_response(api.UpdateServiceResponse())
