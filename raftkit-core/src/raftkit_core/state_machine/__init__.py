"""What the log is for: the contract of state machines, and the machines core ships."""
