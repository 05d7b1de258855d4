"""What a trace means: numpy functions from a RoutingTrace to numbers."""
