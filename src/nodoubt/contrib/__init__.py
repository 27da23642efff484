"""For those who already have something: what fits nodoubt into it, a module for each, imported only when asked for."""
