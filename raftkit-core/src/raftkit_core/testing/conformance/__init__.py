"""Suites that prove an adapter keeps its contract: subclass one in a test module and give what it asks for."""
