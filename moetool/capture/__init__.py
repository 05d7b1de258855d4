"""What a model does: routers, engines and the trace they write. torch lives here."""
