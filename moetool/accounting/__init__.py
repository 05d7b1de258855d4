"""What a model costs: the ledger of parameters and bytes. No torch."""
