"""What raftkit reaches, beside its peers and beside a replicator that does nothing else, measured in one run.

``uv run python -m benchmarks`` in the folder ``tests``. No test: a number is never an assertion.
"""
