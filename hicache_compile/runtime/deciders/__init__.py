"""What turns a policy into decisions, step by step."""
