"""The cases, one module for each kind. Each gives groups of contenders that are measured in turns."""
