"""Graph utilities: op names, inputs, data dependencies, costs, printing."""
