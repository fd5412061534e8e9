"""What is found in a graph; nothing here changes one."""
