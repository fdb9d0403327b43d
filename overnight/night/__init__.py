"""What a night remembers: the key of a step."""
