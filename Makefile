# All commands for people and CI. Each target installs what it needs. Run as root on Debian 12.
PY := .venv/bin/python
export PYTHONDONTWRITEBYTECODE ?=

.PHONY: help setup demo clean-demo test check unit sim integration proto lock bench-api bench-raft bench-net kills clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: ## install what is missing (packages, .venv)
	@scripts/setup dev

demo: ## start a swarm on a private engine (or ENGINE=unix:///run/docker.sock) and drive it with the docker CLI
	@scripts/setup runtime
	@$(PY) -m integration.demo up $(if $(ENGINE),--engine $(ENGINE))

clean-demo: ## remove the demo completely
	@if [ -x $(PY) ]; then $(PY) -m integration.demo down; fi

test: setup check ## run all checks and tests, as CI does: JOBS=2 files at a time
	@seed=$(or $(SEED),$$(date +%s)); echo "tests in the order of SEED=$$seed"; \
	$(PY) -m pytest -q -n $(or $(JOBS),2) --dist loadfile --randomly-seed=$$seed

check: setup ## check style, types, layers and generated files
	@.venv/bin/ruff check . && .venv/bin/ruff format --check -q .
	@.venv/bin/mypy
	@out=$$(.venv/bin/lint-imports --no-cache) || { echo "$$out"; exit 1; }
	@scripts/proto --check

unit: setup ## run the tests that need no root, engines or sleeping
	@$(PY) -m pytest -q tests

sim: setup ## simulate clusters under faults: SEEDS=200, or MINUTES=60
	@$(PY) -m tests.sim --cores --seeds 1000 --jobs $(or $(JOBS),2)
	@$(PY) -m tests.sim $(if $(MINUTES),--minutes $(MINUTES),--seeds $(or $(SEEDS),200)) --jobs $(or $(JOBS),2)

fuzz: setup ## fuzz all parsers of outside bytes with atheris: SECONDS=600 each, TARGET="http2 certs" for only those
	@scripts/setup fuzz
	@$(PY) -m tests.fuzz --seconds $(or $(SECONDS),600) $(TARGET)

integration: setup ## run the tests with real engines in network namespaces
	@$(PY) -m pytest -q integration

proto: setup ## generate swarm/api/*_pb2.py and rpc.py from the .proto files
	@scripts/proto

lock: setup ## renew requirements/*.lock from pyproject.toml
	@scripts/lock

bench-api: setup ## compare with the bare engine and stock swarm: requests, service create, idle CPU, memory
	@$(PY) -m integration.bench_api

bench-raft: setup ## compare three managers with three stock ones: failover, writes, node failure
	@$(PY) -m integration.bench_raft

bench-net: setup ## measure the data path in namespaces: round trips, programming of networks and virtual addresses
	@$(PY) -m integration.bench_net

kills: setup ## kill managers at random during writes: MANAGERS=5 MINUTES=10
	@$(PY) -m integration.kills --managers $(or $(MANAGERS),3) --minutes $(or $(MINUTES),10)

clean: clean-demo ## remove .venv and caches
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
