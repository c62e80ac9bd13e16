"""How nodes talk: the contracts, the frames, and the in-process network core ships."""
