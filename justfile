# One line of help a target: `just --list`.

# every toolchain's environment
setup:
    uv run fourfold setup

# the whole test suite
test *ARGS:
    uv run pytest {{ARGS}}

# lint, format, types, import contracts, file sizes
lint:
    uv run ruff check .
    uv run ruff format --check .
    uv run mypy packages
    uv run lint-imports
    uv run python .ci/file_sizes.py

# repair what the linters can repair
fix:
    uv run ruff check --fix .
    uv run ruff format .

# the main job on the demo model
demo OUTPUT="out":
    uv run fourfold quantize demo --output {{OUTPUT}}

# resolve anew and rewrite locks/*.txt
locks:
    uv run fourfold setup --write-locks

# what CI runs
ci:
    .ci/run
