"""The effects: one loop that feeds the engine and carries out its commands."""
