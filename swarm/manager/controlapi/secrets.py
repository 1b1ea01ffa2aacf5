"""Secrets and configs: small named data, of which only the labels can change.

This API never returns the data of a secret.

(swarmkit: manager/controlapi/secret.go, manager/controlapi/config.go)
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from swarm import api
from swarm.api.objects import KIND_OF
from swarm.errors import AlreadyExists, InvalidArgument, NotFound, SwarmError
from swarm.manager.controlapi.common import (
    either_test,
    find_one,
    in_order,
    plural,
    require,
    select,
    spec_labels,
    spec_name,
)
from swarm.manager.controlapi.validate import check_config, check_present, check_secret
from swarm.store.store import View, copy_of
from swarm.store.tx import Tx

_LABELS_ONLY = "only updates to Labels are allowed"


def _without_data(secret: api.Secret) -> api.Secret:
    out = copy_of(secret)
    out.spec.ClearField("data")
    return out


def get_secret(view: View, request: api.GetSecretRequest) -> api.GetSecretResponse:
    """GetSecret."""
    secret = find_one(view, api.Secret, request.secret_id, "secret ID must be provided")
    return api.GetSecretResponse(secret=_without_data(secret))


def list_secrets(view: View, request: api.ListSecretsRequest) -> api.ListSecretsResponse:
    """ListSecrets, without those that the cluster made for itself."""
    passes = either_test(request.filters, spec_name, spec_labels)
    secrets = select(view.all(api.Secret), [passes, lambda secret: not secret.internal])
    return api.ListSecretsResponse(secrets=[_without_data(secret) for secret in secrets])


def create_secret(tx: Tx, request: api.CreateSecretRequest) -> api.CreateSecretResponse:
    """CreateSecret."""
    check_present(request.HasField("spec"))
    check_secret(request.spec)
    if request.spec.HasField("driver"):
        # No secret driver can be installed here; an engine without the plugin says the same.
        raise SwarmError(f'plugin "{request.spec.driver.name}" not found')
    _check_name_free(tx, api.Secret, request.spec.annotations.name)
    secret = tx.create(api.Secret(id=tx.new_id(), spec=request.spec))
    return api.CreateSecretResponse(secret=_without_data(tx.stamped(secret)))


def update_secret(tx: Tx, request: api.UpdateSecretRequest) -> api.UpdateSecretResponse:
    """UpdateSecret: labels only; data may be left out or repeated."""
    require(request.secret_id and request.HasField("secret_version") and request.HasField("spec"))
    before = find_one(tx, api.Secret, request.secret_id).spec
    _check_labels_only(before.annotations, request.spec.annotations, before.data, request.spec.data)
    secret = tx.edit(api.Secret, request.secret_id, request.secret_version.index)
    _set_labels(secret.spec.annotations, request.spec.annotations)
    return api.UpdateSecretResponse(secret=_without_data(tx.stamped(secret)))


def remove_secret(tx: Tx, request: api.RemoveSecretRequest) -> api.RemoveSecretResponse:
    """RemoveSecret: refused while a service names it."""
    require(request.secret_id, "secret ID must be provided")
    secret = tx.get(api.Secret, request.secret_id)
    if secret is None:
        raise NotFound(f"could not find secret {request.secret_id}")
    _check_unused("secret", secret.spec.annotations.name, tx.find(api.Service, "secret", secret.id))
    tx.remove(api.Secret, secret.id)
    return api.RemoveSecretResponse()


def get_config(view: View, request: api.GetConfigRequest) -> api.GetConfigResponse:
    """GetConfig."""
    config = find_one(view, api.Config, request.config_id, "config ID must be provided")
    return api.GetConfigResponse(config=config)


def list_configs(view: View, request: api.ListConfigsRequest) -> api.ListConfigsResponse:
    """ListConfigs."""
    passes = either_test(request.filters, spec_name, spec_labels)
    return api.ListConfigsResponse(configs=select(view.all(api.Config), [passes]))


def create_config(tx: Tx, request: api.CreateConfigRequest) -> api.CreateConfigResponse:
    """CreateConfig."""
    check_present(request.HasField("spec"))
    check_config(request.spec)
    _check_name_free(tx, api.Config, request.spec.annotations.name)
    config = tx.create(api.Config(id=tx.new_id(), spec=request.spec))
    return api.CreateConfigResponse(config=tx.stamped(config))


def update_config(tx: Tx, request: api.UpdateConfigRequest) -> api.UpdateConfigResponse:
    """UpdateConfig: labels only."""
    require(request.config_id and request.HasField("config_version") and request.HasField("spec"))
    before = find_one(tx, api.Config, request.config_id).spec
    _check_labels_only(before.annotations, request.spec.annotations, before.data, request.spec.data)
    config = tx.edit(api.Config, request.config_id, request.config_version.index)
    _set_labels(config.spec.annotations, request.spec.annotations)
    return api.UpdateConfigResponse(config=tx.stamped(config))


def remove_config(tx: Tx, request: api.RemoveConfigRequest) -> api.RemoveConfigResponse:
    """RemoveConfig: refused while a service names it."""
    require(request.config_id, "config ID must be provided")
    config = tx.get(api.Config, request.config_id)
    if config is None:
        raise NotFound(f"could not find config {request.config_id}")
    _check_unused("config", config.spec.annotations.name, tx.find(api.Service, "config", config.id))
    tx.remove(api.Config, config.id)
    return api.RemoveConfigResponse()


def _check_name_free(view: View, cls: type[api.Secret] | type[api.Config], name: str) -> None:
    if next(view.find(cls, "name", name.lower()), None) is not None:
        raise AlreadyExists(f"{KIND_OF[cls].name} {name} already exists")


def _check_labels_only(before: api.Annotations, after: api.Annotations, old_data: bytes, new_data: bytes) -> None:
    same_data = not new_data or hmac.compare_digest(new_data, old_data)
    require(before.name == after.name and same_data, _LABELS_ONLY)


def _set_labels(annotations: api.Annotations, wanted: api.Annotations) -> None:
    annotations.labels.clear()
    annotations.labels.update(wanted.labels)


def _check_unused(word: str, name: str, services: Iterable[api.Service]) -> None:
    users = [service.spec.annotations.name for service in in_order(services)]
    if users:
        raise InvalidArgument(
            f"{word} '{name}' is in use by the following {plural('service', users)}: {', '.join(users)}"
        )
