"""Steps without Dynamo: calls that are made again directly."""
