"""What a model is: its facts, the families that are known by name, and counts on the meta device."""
