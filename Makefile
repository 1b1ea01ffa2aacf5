# Everything a person or CI does here. Each target installs what it needs; run as root on Debian 12.
PY := .venv/bin/python
export PYTHONDONTWRITEBYTECODE ?=

.PHONY: help setup demo clean-demo test check unit sim integration proto lock bench-api bench-raft kills clean

help: ## what there is to do
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: ## install what is missing (packages, .venv)
	@scripts/setup dev

demo: ## a swarm on a private engine, driven by the docker CLI (or ENGINE=unix:///run/docker.sock)
	@scripts/setup runtime
	@$(PY) -m integration.demo up $(if $(ENGINE),--engine $(ENGINE))

clean-demo: ## take the demo down again, leaving nothing
	@if [ -x $(PY) ]; then $(PY) -m integration.demo down; fi

test: setup check ## every check and every test, as CI runs them: JOBS=2 files at a time
	@seed=$(or $(SEED),$$(date +%s)); echo "tests in the order of SEED=$$seed"; \
	$(PY) -m pytest -q -n $(or $(JOBS),2) --dist loadfile --randomly-seed=$$seed

check: setup ## style, types, layers, generated files
	@.venv/bin/ruff check . && .venv/bin/ruff format --check -q .
	@.venv/bin/mypy
	@out=$$(.venv/bin/lint-imports --no-cache) || { echo "$$out"; exit 1; }
	@scripts/proto --check

unit: setup ## tests without root, engines or sleeping
	@$(PY) -m pytest -q tests

sim: setup ## simulated clusters under faults: SEEDS=200, or MINUTES=60
	@$(PY) -m tests.sim --cores --seeds 1000 --jobs $(or $(JOBS),2)
	@$(PY) -m tests.sim $(if $(MINUTES),--minutes $(MINUTES),--seeds $(or $(SEEDS),200)) --jobs $(or $(JOBS),2)

fuzz: setup ## atheris at every entry of bytes from outside: SECONDS=600 each, TARGET="http2 certs" only those
	@scripts/setup fuzz
	@$(PY) -m tests.fuzz --seconds $(or $(SECONDS),600) $(TARGET)

integration: setup ## tests with real engines in network namespaces
	@$(PY) -m pytest -q integration

proto: setup ## generate swarm/api/*_pb2.py and rpc.py from the .proto files
	@scripts/proto

lock: setup ## renew requirements/*.lock from pyproject.toml
	@scripts/lock

bench-api: setup ## ours beside the bare engine and stock swarm: requests, service create, idle CPU, memory
	@$(PY) -m integration.bench_api

bench-raft: setup ## failover, writes and node failure of three managers beside stock's three
	@$(PY) -m integration.bench_raft

kills: setup ## managers killed at random under writes: MANAGERS=5 MINUTES=10
	@$(PY) -m integration.kills --managers $(or $(MANAGERS),3) --minutes $(or $(MINUTES),10)

clean: clean-demo ## remove .venv and caches
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
