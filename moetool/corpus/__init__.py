"""What a model reads: documents with a domain and a group."""
