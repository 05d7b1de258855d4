"""Where the bytes of a checkpoint are: names, headers, dtypes. No torch."""
