"""nodoubt: transactions over several databases that end one way everywhere."""
