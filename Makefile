# The words of this project; `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup check test test-all chaos bench demo lock test-gpu first-gpu up down clean
test test-all test-gpu: export OMP_NUM_THREADS ?= 1
BIN := .venv/bin
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder  # on two cores: tests of servers wait more than they compute

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' Makefile | expand -t 12

setup:  ## .venv with every dependency; at once when nothing has changed
	@bin/setup

demo: setup  ## the whole chain on data that is embedded: ETL, CNN, YOLO, graph, agent (CPU=1: without the card)
	$(BIN)/overnight up
	$(BIN)/overnight run configs/demo.yaml $(if $(CPU),--cpu)
	@echo "Look around: MLflow (the address above) and Prefect keep running; 'make down' stops them."

test: check  ## what has to pass before a change lands; no card needed
	$(BIN)/pytest $(PARALLEL) -m "not gpu and not slow" $$(bin/own-files 'tests/*test_*.py')

test-all: check  ## test, and the trainings and servers that take longer
	$(BIN)/pytest $(PARALLEL) -m "not gpu" $$(bin/own-files 'tests/*test_*.py')

check: setup  ## style and types of the project's own files
	$(BIN)/ruff check $$(bin/own-files '*.py')
	$(BIN)/ruff format --check $$(bin/own-files '*.py')
	$(BIN)/mypy $$(bin/own-files 'overnight/*.py' 'tasks/*.py' 'flows/*.py')

test-gpu: setup  ## what needs a CUDA card
	$(BIN)/pytest -m gpu

first-gpu: setup  ## on a machine with a card, once: what nobody could try without one; 8 minutes at most, a table
	$(BIN)/python -m bench.first_gpu

chaos: setup  ## kills, stops and a removed folder: a table, and 1 when a bar is missed (NAME=card_kill: one case)
	$(BIN)/python -m tests.chaos $(NAME)

bench: setup  ## the card's line beside a bare Prefect limit, and predictions beside 33 trainings; 15 minutes, tables, bench/out/*.json
	$(BIN)/python -m bench.card
	$(BIN)/python -m bench.fit

up: setup  ## start MLflow, Prefect and the worker, and say where they are
	$(BIN)/overnight up

down: setup  ## stop them
	$(BIN)/overnight down

lock: setup  ## resolve again after a change of the dependencies, into both lock files
	$(BIN)/uv lock
	$(BIN)/uv export --quiet --frozen --no-emit-project --no-header --no-annotate --extra llm --extra diffusion --extra duckdb -o requirements.lock
	$(BIN)/uv export --quiet --frozen --no-emit-project --no-header --no-annotate --extra llm --extra diffusion --extra duckdb --extra rapids -o requirements-rapids.lock

clean:  ## remove .venv and caches; results (mlruns, .overnight) stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
