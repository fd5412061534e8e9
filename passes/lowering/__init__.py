"""What is done to a program for one kind of backend."""
