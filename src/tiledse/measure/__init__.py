"""What a network costs and what it loses."""
