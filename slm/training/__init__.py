"""From a recipe to an adapter: curriculum, packing, tree attention and the trainer."""
