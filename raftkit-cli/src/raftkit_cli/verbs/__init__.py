"""The verbs, one module per noun; each is imported when its noun is typed."""
