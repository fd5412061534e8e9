"""The vocabulary of graphs: ops, inputs, choices, and small tools."""
