"""The procedural data set of scenes, and the recipe of the starter model that is trained on it."""
