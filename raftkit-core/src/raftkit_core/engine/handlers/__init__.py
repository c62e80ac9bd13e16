"""One duty each; together they are the algorithm. They share :class:`..parts.EngineParts` and keep no state."""
