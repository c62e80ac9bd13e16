"""The ``raftkit`` command: run, operate and test Raft clusters.

``main`` is the click tree and the error boundary, ``verbs/`` one module per noun (imported when typed), ``cluster/``
real node processes on this machine. Everything about Raft comes from ``raftkit_core``; adapters come through hooks.
"""
